import { absorbQuery } from './cases/absorb-query';
import { adamw, clipFactor } from './cases/adamw';
import { attentionBackwardCases } from './cases/attention-backward';
import { attentionDecode } from './cases/attention-decode';
import { attentionPrefill } from './cases/attention-prefill';
import { blend, dot } from './cases/blend';
import { cast } from './cases/cast';
import { combine } from './cases/combine';
import { combineGradient, sumSlots } from './cases/combine-gradient';
import { expertPlan } from './cases/expert-plan';
import { fillRandom } from './cases/fill-random';
import { gatherRows } from './cases/gather-rows';
import { gatherRowsGradient } from './cases/gather-rows-gradient';
import { groupedLinear } from './cases/grouped-linear';
import {
  groupedLinearInputGradient,
  groupedLinearWeightGradient,
} from './cases/grouped-linear-gradient';
import { headLinear } from './cases/head-linear';
import { latentStore } from './cases/latent-store';
import { linear } from './cases/linear';
import { crossEntropy, squaredDifference } from './cases/losses';
import { linearInputGradient, linearWeightGradient } from './cases/linear-gradient';
import { mixAttentionCases } from './cases/mix-attention';
import type { HostTensors, OperationCases } from './cases/operation';
import { rmsNormCases } from './cases/rms-norm';
import { rmsNormGradient } from './cases/rms-norm-gradient';
import { rope, ropeTable } from './cases/rope';
import { route } from './cases/route';
import { routeGradient } from './cases/route-gradient';
import { sample } from './cases/sample';
import { swiglu } from './cases/swiglu';
import { swigluGradient } from './cases/swiglu-gradient';

export type AnyOperation = OperationCases<{ name: string }, HostTensors>;

/** What training needs besides attention, and how it is tried. */
export const gradientOperations: readonly AnyOperation[] = [
  linearInputGradient,
  linearWeightGradient,
  rmsNormGradient,
  swigluGradient,
  routeGradient,
  groupedLinearInputGradient,
  groupedLinearWeightGradient,
  combineGradient,
  sumSlots,
  gatherRowsGradient,
  crossEntropy,
  squaredDifference,
  blend,
  dot,
  adamw,
  clipFactor,
];

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
  ...gradientOperations,
];
