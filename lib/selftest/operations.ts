import { absorbQuery } from './cases/absorb-query';
import { attentionBackwardCases } from './cases/attention-backward';
import { attentionDecode } from './cases/attention-decode';
import { attentionPrefill } from './cases/attention-prefill';
import { cast } from './cases/cast';
import { combine } from './cases/combine';
import { expertPlan } from './cases/expert-plan';
import { fillRandom } from './cases/fill-random';
import { gatherRows } from './cases/gather-rows';
import { groupedLinear } from './cases/grouped-linear';
import { headLinear } from './cases/head-linear';
import { latentStore } from './cases/latent-store';
import { linear } from './cases/linear';
import { mixAttentionCases } from './cases/mix-attention';
import type { HostTensors, OperationCases } from './cases/operation';
import { rmsNormCases } from './cases/rms-norm';
import { rope, ropeTable } from './cases/rope';
import { route } from './cases/route';
import { sample } from './cases/sample';
import { swiglu } from './cases/swiglu';

export type AnyOperation = OperationCases<{ name: string }, HostTensors>;

/** Every operation of native/ops that computes something, and the cases it is tried on. */
export const operations: readonly AnyOperation[] = [
  cast,
  fillRandom,
  gatherRows,
  rmsNormCases,
  swiglu,
  ropeTable,
  rope,
  latentStore,
  linear,
  headLinear,
  absorbQuery,
  attentionPrefill,
  attentionDecode,
  attentionBackwardCases,
  mixAttentionCases,
  route,
  expertPlan,
  groupedLinear,
  combine,
  sample,
];
