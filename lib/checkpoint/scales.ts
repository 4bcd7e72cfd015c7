import { throwIfAborted, LozaError } from '../errors';
import type { Checkpoint } from './checkpoint';
import { readExactly, withFile } from './files';
import type { TensorEntry } from './safetensors';

/** Block scales of f8e4m3 weights must be finite and positive: one NaN poisons a model without a trace. */
export async function checkScales(
  checkpoint: Checkpoint,
  signal: AbortSignal | undefined,
): Promise<void> {
  const byFile = new Map<string, TensorEntry[]>();
  for (const entry of checkpoint.tensors.values()) {
    if (!entry.name.endsWith('_scale_inv') || entry.dtype !== 'F32') continue;
    byFile.set(entry.file, [...(byFile.get(entry.file) ?? []), entry]);
  }
  for (const [file, entries] of byFile) {
    await withFile(file, async (handle) => {
      for (const entry of entries) {
        throwIfAborted(signal);
        const bytes = await readExactly(handle, entry.end - entry.begin, entry.begin, file);
        checkScale(entry, bytes);
      }
    });
  }
}

function checkScale(entry: TensorEntry, bytes: Uint8Array): void {
  const values = new Float32Array(bytes.slice().buffer);
  const bad = values.findIndex((value) => !(Number.isFinite(value) && value > 0));
  if (bad < 0) return;
  const problem = `${entry.file}: ${entry.name} holds the scale ${values[bad]} at ${bad}, expected finite and positive ones`;
  throw new LozaError('ERR_LOZA_CHECKPOINT', problem, { value: values[bad] });
}
