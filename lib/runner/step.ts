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
  /** Plans the absorbed attention of all layers, which have so many heads. Before the first of them. */
  planAttention(heads: number): void;
}

/** Rotary angles: the inverse frequencies as fp32 value and remainder, [2, rope / 2]. */
export interface RopeAngles {
  inverseFrequencies: Tensor;
  attentionScale: number;
  exact: boolean;
}

/** A batch on the device, before it is a step. */
export interface StepTensors {
  rows: number;
  absorbedRows: number;
  tokens: Tensor; // i32 [rows]
  positions: Tensor; // i32 [rows]
  queryStarts: Tensor; // i32 [absorbed sequences + 1]
  groups: (GroupTensors & { group: LayerGroup })[];
}

export type GroupTensors = Omit<StepAttention, 'cache' | 'range'>;

export function uploadStep(ops: Ops, batch: Batch, angles: RopeAngles): Step {
  return makeStep(ops, uploadBatch(ops, batch), angles);
}

/** Tables and slot mappings are shared by all attentions of a group. */
export function uploadBatch(ops: Ops, batch: Batch): StepTensors {
  return {
    rows: batch.rows,
    absorbedRows: batch.absorbedRows,
    tokens: ops.upload(batch.tokens),
    positions: ops.upload(batch.positions),
    queryStarts: ops.upload(batch.queryStarts),
    groups: batch.groups.map((group) => uploadGroup(ops, group, batch)),
  };
}

/** Enqueues what all layers share, and gives each attention its cache and its group's tables. */
export function makeStep(ops: Ops, tensors: StepTensors, angles: RopeAngles): Step {
  const { rows, absorbedRows, tokens, positions, queryStarts, groups } = tensors;
  const absorbedPositions = absorbedRows === rows ? positions : positions.slice(0, 0, absorbedRows);
  const attentions: StepAttention[] = [];
  const views: Pick<StepAttention, 'cache' | 'blocks' | 'range'>[] = [];
  for (const { group, blocks: tables, ...rest } of groups) {
    const { range } = group;
    const blocks = { ...tables };
    views.push({ cache: group.cache(0), blocks, range });
    group.attentions.forEach((attention, n) => {
      attentions[attention] = { cache: group.cache(n), range, blocks, ...rest };
    });
  }
  const { inverseFrequencies, attentionScale, exact } = angles;
  return {
    ops,
    rows,
    absorbedRows,
    tokens,
    ropeTable: ops.ropeTable(positions, inverseFrequencies, attentionScale, exact),
    queryStarts,
    absorbedPositions,
    attention: (index) => attentions[index] as StepAttention,
    planAttention: (heads) => {
      if (absorbedRows === 0) return;
      for (const { cache, blocks, range } of views)
        blocks.plan = ops.attentionPlan(
          cache,
          blocks,
          queryStarts,
          absorbedPositions,
          heads,
          range,
        );
    },
  };
}

function uploadGroup(
  ops: Ops,
  batch: GroupBatch,
  { queryStarts }: Batch,
): GroupTensors & { group: LayerGroup } {
  const sequences = queryStarts.length - 1;
  return {
    group: batch.group,
    slots: ops.upload(batch.slots),
    blocks: {
      blockTable: ops.upload(batch.blockTable, sequences, batch.tableWidth),
      firstLocal: ops.upload(batch.firstLocal),
    },
    rounds: batch.rounds.map((round) => ({
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
