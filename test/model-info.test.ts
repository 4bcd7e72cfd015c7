import { everyOther } from '../lib/bench/arms';
import { kvBytes } from '../lib/cli/inspect';
import { Sequence } from '../lib/engine/sequence';
import { makeGroups, planLoad, type LoadPlan, type PoolLimits } from '../lib/load-model';
import { resolveLoadOptions } from '../lib/load-options';
import { describePlan } from '../lib/model-info';
import type { Device } from '../lib/native/device';
import type { DType } from '../lib/native/tensor';

const million = 2 ** 20;
const gibibytes = (bytes: number) => bytes / 2 ** 30;
/** The published pattern is not: half of the attentions stream, 1 + 7 blocks of 128 tokens. */
const streaming = { layerType: everyOther(56), sinkBlocks: 1, localBlocks: 7 };

const planOf = (attention: 'full' | typeof streaming) =>
  planLoad('longcat-flash', resolveLoadOptions({ loadFormat: 'dummy', attention }));

/** The pools of a plan in bf16, and what they take. */
function poolsOf(plan: LoadPlan, limits: PoolLimits, maxTokens: number) {
  let bytes = 0;
  const allocate = (_: DType, [rows, width]: readonly number[]) => {
    bytes += rows! * width! * 2;
    return {};
  };
  const device = { allocate, release: () => undefined } as unknown as Device;
  return { groups: makeGroups(device, plan, limits, 'bf16', maxTokens), bytes };
}

describe('LongCat-Flash at 1M tokens in bf16', () => {
  const alone = { maxSequences: 1, stepTokens: 8192, prefixCache: false };

  test.each<[string, 'full' | typeof streaming, number]>([
    ['full attention', 'full', 63],
    ['LoZA', streaming, 31.5],
  ])('%s', async (_, attention, expected) => {
    const plan = await planOf(attention);
    const { groups, bytes } = poolsOf(plan, alone, million);
    // Behind the last token of a block the window is about to give back one more.
    const { resident, full } = new Sequence([], groups).kvBytes(million - 1);
    expect(gibibytes(full)).toBe(63);
    // 8 blocks of 128 tokens in 28 attentions are 31.5 MiB.
    const window = attention === 'full' ? 0 : 31.5 / 1024;
    expect(gibibytes(resident)).toBeCloseTo(expected + window, 10);
    // What inspect prints is the same, and the pools take no more than a chunk on top of it.
    expect(kvBytes(describePlan(plan), million, 'bf16')).toEqual({ full, loza: resident });
    expect(gibibytes(bytes)).toBeGreaterThanOrEqual(gibibytes(resident));
    expect(gibibytes(bytes)).toBeLessThan(expected + 0.35);
  });

  test('a cache of prefixes keeps windows for a sixteenth of the full group on top', async () => {
    const plan = await planOf(streaming);
    const sizes = [false, true].map(
      (prefixCache) => poolsOf(plan, { ...alone, prefixCache }, million).bytes,
    );
    expect(gibibytes(sizes[1]! - sizes[0]!)).toBeCloseTo(31.5 / 16, 10);
  });
});
