import type { LoadedModel, LoadPlan } from '../load-model';
import { loadModel, planLoad } from '../load-model';
import { resolveLoadOptions, type LoadOptions, type ResolvedLoadOptions } from '../load-options';
import type { DeviceKind } from '../native/binding';
import { armAttention, realExpertShare, type Blocks } from './arms';
import { DryModel } from './dry-model';
import { judge, promptTokens, tryModel, type GateResult, type GateVerdict } from './gate';
import { testLength, type BenchTest } from './grammar';
import type { MeasuredLimits } from './kernels';
import { runTest, type RunOptions, type TestSample } from './run-tests';
import { fillCaches, timeDevice, type StackStep } from './stack';

/** One arm of a comparison: a choice of attentions. */
export interface Arm {
  name: string;
  plan: LoadPlan;
  options: ResolvedLoadOptions;
  dry: DryModel;
}

export interface ArmMemory {
  weights: number;
  kv: number;
  /** Weights, KV pools and activations of the largest step. */
  predictedPeak: number;
  /** undefined: not measured. */
  peak: number | undefined;
}

/** One test in one arm. */
export interface TestResult {
  test: BenchTest;
  samples: TestSample[];
  /** Of the time of a typical step, by the clock of the device; undefined where that is too long. */
  attentionShare: number | undefined;
  /** Seconds that the operations take at the measured limits; undefined where none are measured. */
  leastSeconds: number | undefined;
}

export interface ArmResult {
  arm: string;
  layerType: string;
  memory: ArmMemory;
  results: TestResult[];
}

export interface Comparison {
  gate: GateVerdict;
  arms: ArmResult[];
}

/** Operations of a step that the timeline has room for. */
const mostCalls = 16_000;

/** Plans the arms: nothing is loaded. `kind` decides the dtypes. */
export async function planArms(
  dir: string,
  names: readonly string[],
  tests: readonly BenchTest[],
  base: LoadOptions,
  kind: DeviceKind,
  blocks: Blocks = {},
): Promise<Arm[]> {
  const whole = await planLoad(dir, resolveLoadOptions(base));
  const arms: Arm[] = [];
  for (const name of names) {
    const options = resolveLoadOptions({
      ...base,
      ...needs(tests),
      ...{ device: kind, attention: armAttention(name, whole, blocks), prefixCache: false },
    });
    const plan = await planLoad(dir, options);
    arms.push({ name, plan, options, dry: new DryModel(plan, options, kind) });
  }
  return arms;
}

/** Room for every test, and for the prompt of the gate. */
function needs(tests: readonly BenchTest[]) {
  const most = (value: (test: BenchTest) => number, least: number) =>
    Math.max(least, ...tests.map(value));
  return {
    maxTokens: most((test) => test.batch * (Math.ceil(testLength(test) / 128) * 128 + 128), 512),
    maxSequences: most(({ batch }) => batch, 1),
    stepTokens: most(({ chunk }) => chunk, 256),
    // A depth that is computed is read in chunks too.
    chunkTokens: most(({ prompt, depth, chunk }) => Math.min(Math.max(prompt, depth), chunk), 256),
  };
}

/** What an arm will take, by its largest steps. */
export function planMemory({ dry }: Arm, tests: readonly BenchTest[]): ArmMemory {
  dry.step(1, promptTokens, 0); // the gate comes first
  for (const test of tests) {
    for (const { batch, count, position } of typicalSteps(test)) dry.step(batch, count, position);
  }
  const { weights, kv, workspace } = dry.bytes;
  const predictedPeak = weights + kv + workspace + dry.arenaBytes;
  return { weights, kv, predictedPeak, peak: undefined };
}

/** The last chunk of the prompt, and the step in the middle of what is generated. */
function typicalSteps({ prompt, generate, depth, batch, chunk }: BenchTest): StackStep[] {
  const steps: StackStep[] = [];
  if (prompt > 0) {
    const count = Math.min(prompt, chunk);
    const together = Math.min(batch, Math.max(1, Math.floor(chunk / prompt)));
    steps.push({ name: 'prompt', batch: together, count, position: depth + prompt - count });
  }
  const middle = depth + prompt + Math.floor(generate / 2);
  if (generate > 0) steps.push({ name: 'generation', batch, count: 1, position: middle });
  return steps;
}

export interface CompareOptions {
  /** undefined: times are not compared with limits. */
  limits: MeasuredLimits | undefined;
  run: RunOptions;
  /** Whether to record where the time goes. */
  attention: boolean;
}

/** Runs all tests in each arm, one arm after the other. */
export async function compareArms(
  dir: string,
  arms: readonly Arm[],
  tests: readonly BenchTest[],
  options: CompareOptions,
): Promise<Comparison> {
  const measure = (loaded: LoadedModel, arm: Arm) => measureArm(loaded, arm, tests, options);
  const { gate, results } = await runArms(dir, arms, options.run.seed, measure);
  return { gate, arms: results };
}

/** Loads the arms in turn; stops before measuring one that is wrong. */
export async function runArms<T>(
  dir: string,
  arms: readonly Arm[],
  seed: number,
  measure: (loaded: LoadedModel, arm: Arm) => Promise<T>,
): Promise<{ gate: GateVerdict; results: T[] }> {
  const gates: { name: string; gate: GateResult }[] = [];
  const results: T[] = [];
  let gate = judge([]);
  for (const arm of arms) {
    const loaded = await loadModel(dir, arm.options);
    try {
      if (isDummy(arm)) fillCaches(loaded);
      gates.push({ name: arm.name, gate: await tryModel(loaded, seed) });
      gate = judge(gates);
      if (!gate.passed) return { gate, results };
      results.push(await measure(loaded, arm));
    } finally {
      loaded.device.close();
    }
  }
  return { gate, results };
}

export const isDummy = ({ options }: Pick<Arm, 'options'>): boolean =>
  options.loadFormat === 'dummy';

async function measureArm(
  loaded: LoadedModel,
  arm: Arm,
  tests: readonly BenchTest[],
  { limits, run, attention }: CompareOptions,
): Promise<ArmResult> {
  const memory = planMemory(arm, tests);
  const results: TestResult[] = [];
  for (const test of tests) {
    const samples = await runTest(loaded, test, run);
    const leastSeconds = limits && arm.dry.leastTestSeconds(test, limits);
    results.push({ test, samples, leastSeconds, attentionShare: undefined });
  }
  // Read before the recorded steps below, which take memory of their own.
  const { peak } = loaded.device.memory();
  if (attention) {
    for (const result of results) {
      result.attentionShare = await measureShare(loaded, arm, result.test, limits);
    }
  }
  const layerType = arm.plan.pattern?.layerType ?? '0'.repeat(arm.plan.model.attentions);
  return { arm: arm.name, layerType, memory: { ...memory, peak }, results };
}

/** Attention's share of the operations of a step, without the gaps that the clock fills. */
async function measureShare(
  loaded: LoadedModel,
  { dry, plan }: Arm,
  test: BenchTest,
  limits: MeasuredLimits | undefined,
): Promise<number | undefined> {
  const step = typicalSteps(test).at(-1);
  if (step === undefined) return undefined;
  const { batch, count, position } = step;
  if (dry.step(batch, count, position).calls.length > mostCalls) return undefined;
  const facts = { count, position, realExperts: realExpertShare(plan) };
  const { calls } = await timeDevice(loaded, step, facts, 1);
  const reading = (limits?.emptyLaunchNs ?? 0) / 1000;
  let [attention, all] = [0, 0];
  for (const { operation, microseconds } of calls) {
    const net = Math.max(microseconds - reading, 0);
    all += net;
    if (operation.startsWith('Attention')) attention += net;
  }
  return attention / all;
}
