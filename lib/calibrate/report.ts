import type { Checkpoint } from '../checkpoint/checkpoint';
import { JsonNumber, type JsonValue } from '../checkpoint/json';
import { attentionBlock } from '../checkpoint/streaming-config';
import type { LoadPlan } from '../load-model';
import { writeAtomically } from '../train/atomic-file';
import type { RunFolder } from '../train/run-folder';
import { writeConfig } from '../train/write-config';
import type { CalibrateMethod } from './options';
import type { PenaltyTrial } from './penalty';
import { drawAlphas } from './picture';

/** What a calibration found, and with what: the content of alphas.json. */
export interface CalibrationReport {
  method: CalibrateMethod;
  /** One character an attention: '1' = streaming, '0' = full. */
  layerType: string;
  sparsity: number;
  sinkBlocks: number;
  localBlocks: number;
  /** Of method 'gradient': the share that full attention has in each mix. */
  alphas?: readonly number[] | undefined;
  /** All attentions, the most replaceable first, by methods that measure. */
  order?: readonly number[] | undefined;
  /** Difference of the scores (alphas, or ablations) on both sides of the cut. */
  margin?: number | undefined;
  /** Attentions whose alphas were tied at the cut, so that their ablations decided. */
  tied?: readonly number[] | undefined;
  /** Difference of the ablations on both sides of the cut, where they decided. */
  ablationMargin?: number | undefined;
  /** Increase of the next-token loss when one attention alone streams; null where not measured. */
  ablations?: readonly (number | null)[] | undefined;
  /** Next-token loss of the full model over the sequences of the ablations. */
  fullLoss?: number | undefined;
  /** The penalties that were tried, and the medians of the alphas. */
  rounds?: readonly PenaltyTrial[] | undefined;
  /** The loss of every step of the last round, without the penalty. */
  losses?: readonly number[] | undefined;
  /** What the calibration was told. */
  options: Readonly<Record<string, unknown>>;
  data?: { hash: string; sequences: number; tokens: number; targets: number } | undefined;
}

/** Writes the new checkpoint: weights linked, the pattern in its config, alphas and their picture. */
export async function writeCheckpoint(
  folder: RunFolder,
  plan: LoadPlan,
  report: CalibrationReport,
): Promise<void> {
  const { checkpoint, model } = plan;
  await folder.copyCompanions(checkpoint);
  await folder.linkWeights(checkpoint);
  await writeAtomically(folder.file('alphas.json'), `${JSON.stringify(report, null, 1)}\n`);
  const { alphas, layerType } = report;
  if (alphas !== undefined) {
    const picture = { title: title(checkpoint), subtitle: subtitle(report) };
    const perLayer = model.attentions / model.layers;
    const svg = drawAlphas({ ...picture, alphas, layerType, perLayer });
    await writeAtomically(folder.file('alphas.svg'), svg);
  }
  const pattern = new Map([['streaming_sparse_attention', patternOf(report)]]);
  await writeConfig(folder, plan, pattern);
  await folder.finish();
}

/** As lib/checkpoint/streaming-config.ts reads it. */
function patternOf({ layerType, sinkBlocks, localBlocks, sparsity }: CalibrationReport): JsonValue {
  const number = (value: number) => new JsonNumber(String(value));
  return new Map<string, JsonValue>([
    ['layer_type', layerType],
    ['sink_size', number(sinkBlocks * attentionBlock)],
    ['recent_size', number(localBlocks * attentionBlock)],
    ['sparsity', number(sparsity)],
  ]);
}

const title = ({ architecture, modelType }: Checkpoint): string =>
  `Alphas of ${architecture ?? modelType ?? 'a model'}`;

function subtitle({ layerType, margin, rounds }: CalibrationReport): string {
  const streaming = [...layerType].filter((type) => type === '1').length;
  const cut = margin === undefined ? '' : `, margin at the cut ${margin.toFixed(3)}`;
  const penalty = rounds?.at(-1)?.penalty;
  const by = penalty === undefined ? '' : `, penalty ${penalty}`;
  return `${streaming} of ${layerType.length} attentions stream${cut}${by}`;
}
