import { LozaError, show } from '../errors';
import { readExactly, withFile } from './files';
import { JsonNumber, parseJson, showJson, type JsonObject, type JsonValue } from './json';

/**
 * Bits of one element of every dtype the format knows (huggingface/safetensors 24b0b28,
 * tensor.rs).
 */
const dtypeBits = {
  BOOL: 8,
  F4: 4,
  F6_E2M3: 6,
  F6_E3M2: 6,
  U8: 8,
  I8: 8,
  F8_E5M2: 8,
  F8_E4M3: 8,
  F8_E8M0: 8,
  F8_E4M3FNUZ: 8,
  F8_E5M2FNUZ: 8,
  I16: 16,
  U16: 16,
  F16: 16,
  BF16: 16,
  I32: 32,
  U32: 32,
  F32: 32,
  C64: 64,
  F64: 64,
  I64: 64,
  U64: 64,
} as const;

export type SafetensorsDtype = keyof typeof dtypeBits;

/**
 * Where one tensor lies. Its bytes are `[begin, end)` of `file`, counted from the start of the
 * file.
 */
export interface TensorEntry {
  readonly name: string;
  readonly dtype: SafetensorsDtype;
  readonly shape: readonly number[];
  readonly file: string;
  readonly begin: number;
  readonly end: number;
}

export interface SafetensorsFile {
  readonly path: string;
  /** Size of the whole file. */
  readonly bytes: number;
  readonly tensors: ReadonlyMap<string, TensorEntry>;
  readonly metadata: ReadonlyMap<string, string>;
}

const lengthBytes = 8;
const maxHeaderBytes = 100_000_000;
const maxNameBytes = 512;
const maxRank = 8;
const maxDim = 2 ** 31 - 1;
const maxDepth = 4;

/**
 * Reads the header of a safetensors file; the tensor data is not touched.
 *
 * @throws LozaError ERR_LOZA_NOT_FOUND, ERR_LOZA_IO, or ERR_LOZA_CHECKPOINT for a malformed file.
 */
export function readSafetensorsHeader(path: string): Promise<SafetensorsFile> {
  return withFile(path, async (handle, fileBytes) => {
    const prefix = await readExactly(handle, Math.min(lengthBytes, fileBytes), 0, path);
    const headerBytes = parseHeaderLength(prefix, fileBytes, path);
    const header = await readExactly(handle, headerBytes, lengthBytes, path);
    return parseSafetensorsHeader(header, fileBytes, path);
  });
}

/**
 * The header's length in bytes from the first 8 bytes of a file of `fileBytes`. It is checked
 * against the file's size, so that a forged length allocates nothing.
 */
export function parseHeaderLength(prefix: Uint8Array, fileBytes: number, path: string): number {
  if (fileBytes < lengthBytes) {
    throw malformed(path, `a safetensors file has at least 8 bytes, got ${fileBytes}`, fileBytes);
  }
  const view = new DataView(prefix.buffer, prefix.byteOffset, lengthBytes);
  const length = view.getBigUint64(0, true);
  const most = Math.min(maxHeaderBytes, fileBytes - lengthBytes);
  if (length === 0n || length > BigInt(most)) {
    const why = `the file has ${fileBytes} bytes, a header at most ${maxHeaderBytes}`;
    throw malformed(path, `the header's length must be 1..${most} (${why}), got ${length}`, length);
  }
  return Number(length);
}

/**
 * Parses the JSON header (without the 8 bytes of its length) of a file of `fileBytes`.
 *
 * Stricter than the reference reader where that one leaves room for two readings of one file:
 * duplicate names, unknown fields, sizes whose overflow a zero dimension hides.
 *
 * @throws LozaError ERR_LOZA_CHECKPOINT naming the file and the tensor.
 */
export function parseSafetensorsHeader(
  header: Uint8Array,
  fileBytes: number,
  path: string,
): SafetensorsFile {
  const root = parseJson(header, { file: path, maxDepth, code: 'ERR_LOZA_CHECKPOINT' });
  if (!(root instanceof Map)) {
    throw malformed(path, `the header must be a JSON object, got ${showJson(root)}`, root);
  }
  const dataStart = lengthBytes + header.length;
  const tensors = new Map<string, TensorEntry>();
  let metadata = new Map<string, string>();
  for (const [name, value] of root) {
    if (name === '__metadata__') metadata = parseMetadata(value, path);
    else tensors.set(name, parseTensor(name, value, dataStart, path));
  }
  checkTiling(tensors, dataStart, fileBytes, path);
  return { path, bytes: fileBytes, tensors, metadata };
}

/** True if `name` can name a tensor: 1 to 512 bytes of UTF-8 without control characters. */
export function isTensorName(name: string): boolean {
  return name !== '' && Buffer.byteLength(name) <= maxNameBytes && !/\p{Control}/u.test(name);
}

function parseMetadata(value: JsonValue, path: string): Map<string, string> {
  if (!(value instanceof Map)) {
    throw malformed(path, `__metadata__ must be an object, got ${showJson(value)}`, value);
  }
  const metadata = new Map<string, string>();
  for (const [key, text] of value) {
    if (typeof text !== 'string') {
      const problem = `__metadata__ ${show(key)} must be a string, got ${showJson(text)}`;
      throw malformed(path, problem, text);
    }
    metadata.set(key, text);
  }
  return metadata;
}

function parseTensor(name: string, value: JsonValue, dataStart: number, file: string): TensorEntry {
  if (!isTensorName(name)) {
    const rule = `1 to ${maxNameBytes} bytes without control characters`;
    throw malformed(file, `a tensor name must have ${rule}, got ${show(name)}`, name);
  }
  const tensor = new TensorReader(file, name);
  const fields = tensor.fields(value);
  const dtype = tensor.dtype(fields.get('dtype'));
  const shape = tensor.shape(fields.get('shape'));
  const [begin, end] = tensor.offsets(fields.get('data_offsets'));
  const bytes = tensor.bytes(dtype, shape);
  if (end - begin !== bytes) {
    tensor.fail('data_offsets', `span ${bytes} bytes (${dtype} [${shape}])`, `${end - begin}`);
  }
  return { name, dtype, shape, file, begin: dataStart + begin, end: dataStart + end };
}

/** Reads the fields of one tensor's entry; its errors name the file and the tensor. */
class TensorReader {
  constructor(
    private readonly file: string,
    private readonly name: string,
  ) {}

  fields(value: JsonValue): JsonObject {
    if (!(value instanceof Map)) this.fail('its entry', 'be an object', showJson(value));
    for (const key of value.keys()) {
      if (key !== 'dtype' && key !== 'shape' && key !== 'data_offsets') {
        this.fail('its entry', 'have the fields dtype, shape and data_offsets only', show(key));
      }
    }
    return value;
  }

  dtype(value: JsonValue | undefined): SafetensorsDtype {
    if (typeof value === 'string' && Object.hasOwn(dtypeBits, value)) {
      return value as SafetensorsDtype;
    }
    return this.fail('dtype', `be one of ${Object.keys(dtypeBits).join(', ')}`, showJson(value));
  }

  shape(value: JsonValue | undefined): number[] {
    if (!Array.isArray(value) || value.length > maxRank) {
      this.fail('shape', `be an array of at most ${maxRank} dimensions`, showJson(value));
    }
    return value.map((item) => {
      const dim = item instanceof JsonNumber ? item.toInteger() : undefined;
      if (dim !== undefined && dim >= 0 && dim <= maxDim) return dim;
      return this.fail('shape', `hold integers of 0..${maxDim}`, showJson(item));
    });
  }

  offsets(value: JsonValue | undefined): [begin: number, end: number] {
    if (!Array.isArray(value) || value.length !== 2) {
      this.fail('data_offsets', 'be an array of two integers', showJson(value));
    }
    const [begin, end] = value.map((item) => {
      const offset = item instanceof JsonNumber ? item.toInteger() : undefined;
      if (offset !== undefined && offset >= 0) return offset;
      return this.fail('data_offsets', 'hold integers of 0..2^53-1', showJson(item));
    }) as [number, number];
    if (begin > end) {
      this.fail('data_offsets', 'not end before they begin', `[${begin}, ${end}]`);
    }
    return [begin, end];
  }

  /**
   * Size of the data. A dimension of 0 does not excuse the others: the verdict must not depend on
   * their order.
   */
  bytes(dtype: SafetensorsDtype, shape: readonly number[]): number {
    let bits: number = dtypeBits[dtype];
    for (const dim of shape) {
      bits *= Math.max(dim, 1);
      if (!Number.isSafeInteger(bits)) {
        this.fail('shape', 'give a size below 2^53 bits', `[${shape}] of ${dtype}`);
      }
    }
    if (shape.includes(0)) return 0;
    if (bits % 8 !== 0) this.fail('shape', 'fill whole bytes', `[${shape}] of ${dtype}`);
    return bits / 8;
  }

  fail(field: string, rule: string, got: string): never {
    throw malformed(this.file, `tensor ${show(this.name)}: ${field} must ${rule}, got ${got}`, got);
  }
}

/**
 * The tensors must cover the data exactly: a hole or a tail could hide another file, an overlap a
 * bomb.
 */
function checkTiling(
  tensors: ReadonlyMap<string, TensorEntry>,
  dataStart: number,
  fileBytes: number,
  path: string,
): void {
  const sorted = [...tensors.values()].sort((a, b) => a.begin - b.begin || a.end - b.end);
  let covered = dataStart;
  for (const { name, begin, end } of sorted) {
    if (begin !== covered) {
      const fault = begin > covered ? 'a hole before it' : 'an overlap with another tensor';
      const problem = `must begin at byte ${covered - dataStart} of the data`;
      throw malformed(
        path,
        `tensor ${show(name)} ${problem}, got ${begin - dataStart}: ${fault}`,
        name,
      );
    }
    covered = end;
  }
  if (covered !== fileBytes) {
    const fault = covered > fileBytes ? 'the file is cut off' : 'bytes follow the last tensor';
    const problem = `the file must have ${covered} bytes by its header, got ${fileBytes}: ${fault}`;
    throw malformed(path, problem, fileBytes);
  }
}

function malformed(path: string, problem: string, value: unknown): LozaError {
  return new LozaError('ERR_LOZA_CHECKPOINT', `${path}: ${problem}`, { value });
}
