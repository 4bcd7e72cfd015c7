import type { LayerGroup } from '../kv/layer-group';
import type { BlockView, KeyRange, Ops } from '../native/ops';
import type { Tensor } from '../native/tensor';
import type { Batch, GroupBatch } from './batch';

/** One round of expanded attention, on the device. */
export interface StepRound {
  slots: Tensor; // i32 [keys]
  segments: Tensor; // i32 [segments, 6]
}

/** What one attention needs of a step: its cache, and its group's tables. */
export interface StepAttention {
  cache: Tensor; // [slots, latent + rope]
  range: KeyRange;
  slots: Tensor; // i32 [rows]
  blocks: BlockView;
  rounds: readonly StepRound[];
}

/** A batch on its way through the model: everything a layer may ask for besides the hidden states. */
export interface Step {
  ops: Ops;
  rows: number;
  /** Rows below this use absorbed attention, the others expanded. */
  absorbedRows: number;
  tokens: Tensor; // i32 [rows]
  ropeTable: Tensor; // f32 [rows, rope]
  queryStarts: Tensor; // i32 [absorbed sequences + 1]
  absorbedPositions: Tensor; // i32 [absorbed rows]
  attention(index: number): StepAttention;
}

/** Rotary angles: the inverse frequencies as fp32 value and remainder, [2, rope / 2]. */
export interface RopeAngles {
  inverseFrequencies: Tensor;
  attentionScale: number;
  exact: boolean;
}

/** Uploads a batch; tables and slot mappings are shared by all attentions of a group. */
export function uploadStep(ops: Ops, batch: Batch, angles: RopeAngles): Step {
  const positions = ops.upload(batch.positions);
  const groups = batch.groups.map((group) => uploadGroup(ops, group, batch));
  const attentions: StepAttention[] = [];
  batch.groups.forEach(({ group }, g) => {
    group.attentions.forEach((attention, n) => {
      const tables = groups[g] as GroupTensors;
      attentions[attention] = { cache: group.cache(n), range: group.range, ...tables };
    });
  });
  return {
    ops,
    rows: batch.rows,
    absorbedRows: batch.absorbedRows,
    tokens: ops.upload(batch.tokens),
    ropeTable: ops.ropeTable(
      positions,
      angles.inverseFrequencies,
      angles.attentionScale,
      angles.exact,
    ),
    queryStarts: ops.upload(batch.queryStarts),
    absorbedPositions: positions.slice(0, 0, batch.absorbedRows),
    attention: (index) => attentions[index] as StepAttention,
  };
}

type GroupTensors = Omit<StepAttention, 'cache' | 'range'>;

function uploadGroup(ops: Ops, group: GroupBatch, batch: Batch): GroupTensors {
  const sequences = batch.queryStarts.length - 1;
  return {
    slots: ops.upload(group.slots),
    blocks: {
      blockTable: ops.upload(group.blockTable, sequences, group.tableWidth),
      firstLocal: ops.upload(group.firstLocal),
    },
    rounds: group.rounds.map((round) => ({
      slots: ops.upload(round.slots),
      segments: ops.upload(round.segments, round.segments.length / 6, 6),
    })),
  };
}

/** Attention indices of each kind, from a pattern's characters. */
export function attentionsOfKind(
  kind: LayerGroup['kind'],
  layerType: string | undefined,
  count: number,
): number[] {
  const wanted = kind === 'streaming' ? '1' : '0';
  return Array.from({ length: count }, (_, i) => i).filter(
    (i) => (layerType?.[i] ?? '0') === wanted,
  );
}
