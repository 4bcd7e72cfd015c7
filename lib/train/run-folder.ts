import { copyFile, link, mkdir, readdir, readFile, realpath, rm, symlink } from 'node:fs/promises';
import { basename, join } from 'node:path';

import type { Checkpoint } from '../checkpoint/checkpoint';
import { fileError } from '../checkpoint/files';
import { LozaError } from '../errors';
import { writeAtomically, writeError } from './atomic-file';

/** What a checkpoint folder holds besides its config and weights. */
const companions = [
  ...['tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json', 'added_tokens.json'],
  ...['tokenizer.model', 'vocab.json', 'merges.txt', 'chat_template.jinja'],
  ...['generation_config.json', 'LICENSE', 'LICENSE.txt', 'NOTICE'],
];

/**
 * The folder that a run writes to, and what an earlier run like this one left there to go on from.
 * Until it is done, a run keeps its state in one file, `stateName`.
 */
export class RunFolder {
  private constructor(
    readonly path: string,
    private readonly stateName: string,
    /** Tells runs apart: they go on only from their own state. */
    private readonly fingerprint: string,
  ) {}

  /**
   * @throws LozaError ERR_LOZA_INVALID_ARG for the checkpoint's own folder, and for one that holds
   * anything else than an unfinished run; ERR_LOZA_IO.
   */
  static async open(
    out: string,
    checkpoint: Pick<Checkpoint, 'dir'>,
    stateName: string,
    fingerprint: string,
  ): Promise<RunFolder> {
    const names = await makeFolder(out);
    if ((await realpath(out)) === (await realpath(checkpoint.dir))) {
      const problem = `out must be another folder than the checkpoint's, got ${out}`;
      throw new LozaError('ERR_LOZA_INVALID_ARG', problem, { value: out });
    }
    const others = names.filter((name) => !name.endsWith('.partial'));
    if (others.length > 0 && !others.includes(stateName)) {
      throw new LozaError('ERR_LOZA_INVALID_ARG', `${out} is not empty: it holds ${others[0]}`, {
        value: out,
        hint: 'Name a new folder, or empty this one',
      });
    }
    return new RunFolder(out, stateName, fingerprint);
  }

  file(name: string): string {
    return join(this.path, name);
  }

  get stateFile(): string {
    return this.file(this.stateName);
  }

  /** What `save` wrote last; undefined when this run is new. */
  async resume<State>(): Promise<State | undefined> {
    let text: string;
    try {
      text = await readFile(this.stateFile, 'utf8');
    } catch (error) {
      const known = fileError(error, this.stateFile);
      if (LozaError.isInstance(known) && known.code === 'ERR_LOZA_NOT_FOUND') return undefined;
      throw known;
    }
    const { fingerprint, state } = JSON.parse(text) as { fingerprint: string; state: State };
    this.checkFingerprint(fingerprint);
    return state;
  }

  async save(state: object): Promise<void> {
    const { fingerprint } = this;
    await writeAtomically(this.stateFile, JSON.stringify({ fingerprint, state }));
  }

  /** The same as the metadata of a safetensors file. */
  stamp(state: object): Record<string, string> {
    return { fingerprint: this.fingerprint, state: JSON.stringify(state) };
  }

  checkFingerprint(found: string | undefined): void {
    if (found === this.fingerprint) return;
    const problem = `${this.path} holds a run with other options, data or weights`;
    throw new LozaError('ERR_LOZA_INVALID_ARG', problem, {
      value: this.path,
      hint: 'Give it the same ones to go on, or name another folder',
    });
  }

  /** The run is done: there is nothing to go on from any more. */
  async finish(): Promise<void> {
    await rm(this.stateFile, { force: true });
  }

  /** Tokenizer, chat template and the like: everything that is neither config nor weights. */
  async copyCompanions({ dir }: Pick<Checkpoint, 'dir'>): Promise<void> {
    const present = new Set(await readdir(dir));
    for (const name of companions) {
      if (present.has(name)) await replace(this.file(name), (to) => copyFile(join(dir, name), to));
    }
  }

  /** The weights themselves, without a second copy of them where the file system can do that. */
  async linkWeights({ dir, files }: Pick<Checkpoint, 'dir' | 'files'>): Promise<void> {
    const index = 'model.safetensors.index.json';
    const isSharded = (await readdir(dir)).includes(index);
    for (const { path } of files) {
      await replace(this.file(basename(path)), (to) => linkFile(path, to, !isSharded));
    }
    if (isSharded) await replace(this.file(index), (to) => copyFile(join(dir, index), to));
  }
}

async function makeFolder(path: string): Promise<string[]> {
  try {
    await mkdir(path, { recursive: true });
    return await readdir(path);
  } catch (error) {
    throw writeError(error, path);
  }
}

async function replace(path: string, make: (path: string) => Promise<void>): Promise<void> {
  try {
    await rm(path, { force: true });
    await make(path);
  } catch (error) {
    throw writeError(error, path);
  }
}

/** A hard link, else a symbolic one (shards must not lead out of their folder), else a copy. */
async function linkFile(from: string, to: string, mayLeave: boolean): Promise<void> {
  const target = await realpath(from);
  try {
    await link(target, to);
  } catch {
    if (mayLeave) await symlink(target, to).catch(() => copyFile(target, to));
    else await copyFile(target, to);
  }
}
