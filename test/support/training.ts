import path from 'node:path';
import { MixedModel, type MixOptions } from '../../lib/calibrate/mixed-model';
import type { DeviceKind, TypedArray } from '../../lib/native/binding';
import { layOut, type HostBatch } from '../../lib/train/batch';
import type { TrainingSequence } from '../../lib/train/data/sequences';
import { openDevice, openSession, planTraining, type Session } from '../../lib/train/session';
import { Random } from '../../lib/selftest/random';
import { byteTokenizer } from './byte-tokenizer';
import { readTwin, writeTwin } from './checkpoint-twin';
import { goldenDir } from './goldens';
import { randomTokens } from './prompts';

export const quiet = { device: 'cpu', dtype: 'float32', signal: undefined } as const;

/** A frozen model of a checkpoint, ready to be differentiated. */
export async function openFrozen(
  dir: string,
  device: DeviceKind = 'cpu',
  yarnFactor?: number,
): Promise<Session> {
  const plan = await planTraining(dir, 'full', undefined, yarnFactor);
  const options = { ...quiet, device };
  return openSession(plan, openDevice(plan, options), options);
}

/** Sequences of random tokens; every third token or so is learned. */
export function randomSequences(lengths: readonly number[], vocabulary: number, seed = 1) {
  return lengths.map((length, i): TrainingSequence => {
    const tokens = randomTokens(length, vocabulary, seed + i);
    const targets = Uint8Array.from(tokens, (token, at) => (at > 0 && token % 3 === 0 ? 1 : 0));
    return { tokens, targets };
  });
}

export function randomBatch(lengths: readonly number[], vocabulary: number, seed = 1): HostBatch {
  return layOut(randomSequences(lengths, vocabulary, seed));
}

export interface MixResult {
  loss: number;
  gradient: Float32Array;
}

/** Loss and gradient of one round. */
export async function mixGradient(
  session: Session,
  options: MixOptions,
  batch: HostBatch,
  alphas: ArrayLike<number>,
): Promise<MixResult> {
  const mixed = new MixedModel(session.model, session.angles, options);
  const { ops } = session.grads;
  const [loss, gradient] = await ops.arena.scope(() => {
    const weight = 1 / batch.labelled.length;
    const result = mixed.gradient(session.grads, batch, weight, Float32Array.from(alphas));
    return Promise.all([ops.stream.readFloats(result.loss), ops.stream.readFloats(result.dAlphas)]);
  });
  return { loss: sumOf(loss), gradient };
}

export const sumOf = (values: TypedArray): number => {
  let sum = 0;
  for (const value of values) sum += value;
  return sum;
};

/** Of these tokens behind these logits, [targets, vocabulary]. */
export function meanLoss(logits: Float32Array, targets: Int32Array, vocabulary: number): number {
  let sum = 0;
  targets.forEach((target, i) => {
    const row = logits.subarray(i * vocabulary, (i + 1) * vocabulary);
    const most = Math.max(...row);
    const all = row.reduce((total, logit) => total + Math.exp(logit - most), 0);
    sum += Math.log(all) + most - row[target]!;
  });
  return sum / targets.length;
}

/** A folder with a small checkpoint that can read text. */
export function smallModel(name = 'longcat-full'): string {
  const twin = readTwin(path.join(goldenDir, name));
  return writeTwin(twin, byteTokenizer());
}

/** Lines of chats whose answer stands far back. */
export function recallLines(count: number, characters: number, seed = 1): string {
  const random = new Random(`recall ${seed}`);
  const letters = (n: number) =>
    Array.from({ length: n }, () => String.fromCharCode(97 + random.below(26))).join('');
  return Array.from({ length: count }, () => {
    const key = letters(4);
    const content = `${key} ${letters(characters)}`;
    const messages = [
      { role: 'user', content },
      { role: 'assistant', content: key },
    ];
    return `${JSON.stringify({ messages })}\n`;
  }).join('');
}

/** A checkpoint that sends every token to every expert: a choice would make the loss jump. */
export function withoutChoice(name: string): string {
  const twin = readTwin(path.join(goldenDir, name));
  const { config } = twin;
  const all = Number(config['n_routed_experts']) + Number(config['zero_expert_num'] ?? 0);
  for (const key of ['moe_topk', 'num_experts_per_tok']) if (key in config) config[key] = all;
  if ('topk_group' in config) config['topk_group'] = config['n_group'];
  return writeTwin(twin);
}
