import type { Sequence } from '../engine/sequence';
import { blockTokens, type LayerGroup } from '../kv/layer-group';

/** New tokens of one sequence in a step; its blocks are already there. */
export interface BatchItem {
  sequence: Sequence;
  count: number;
}

export interface BatchLimits {
  /** Sequences with at least this many new tokens use expanded attention, others the absorbed form. */
  expandedMinTokens: number;
  /** Keys that are expanded at a time: bounds the workspace, whatever the context. A multiple of 128. */
  workspaceKeys: number;
}

/** One step's inputs as typed arrays. Rows of absorbed items come first, in the order of the items. */
export interface Batch {
  rows: number;
  absorbedRows: number;
  /** First row of each item, in the order the items were given. */
  firstRows: number[];
  tokens: Int32Array; // [rows]
  positions: Int32Array; // [rows]
  queryStarts: Int32Array; // [absorbed items + 1]
  groups: GroupBatch[];
}

/** What the attentions of one layer group read and write. */
export interface GroupBatch {
  group: LayerGroup;
  slots: Int32Array; // [rows], the slot mapping
  blockTable: Int32Array; // [absorbed items, tableWidth]
  tableWidth: number;
  firstLocal: Int32Array; // [absorbed items]
  rounds: Round[];
}

/** Keys that are expanded together, and the runs of queries that see them. */
export interface Round {
  slots: Int32Array; // [keys]
  /** [segments, 6], as in native/ops/attention/attention.h; query rows count from the first expanded row. */
  segments: Int32Array;
}

interface PlacedItem extends BatchItem {
  firstRow: number;
}

/** Lays out a step. Built once and shared by all attentions of a group. */
export function planBatch(
  items: readonly BatchItem[],
  groups: readonly LayerGroup[],
  limits: BatchLimits,
): Batch {
  const { absorbed, expanded, rows, firstRows } = placeItems(items, limits.expandedMinTokens);
  const absorbedRows = absorbed.reduce((sum, item) => sum + item.count, 0);
  const tokens = new Int32Array(rows);
  const positions = new Int32Array(rows);
  for (const { sequence, count, firstRow } of [...absorbed, ...expanded]) {
    for (let i = 0; i < count; i++) {
      tokens[firstRow + i] = sequence.tokens[sequence.computed + i] ?? 0;
      positions[firstRow + i] = sequence.computed + i;
    }
  }
  return {
    rows,
    absorbedRows,
    firstRows,
    tokens,
    positions,
    queryStarts: Int32Array.from([...absorbed.map((item) => item.firstRow), absorbedRows]),
    groups: groups.map((group) => ({
      group,
      slots: slotMapping(group, [...absorbed, ...expanded], rows),
      ...blockTables(group, absorbed),
      rounds: planRounds(group, expanded, absorbedRows, limits.workspaceKeys),
    })),
  };
}

function placeItems(items: readonly BatchItem[], expandedMinTokens: number) {
  const absorbed: PlacedItem[] = [];
  const expanded: PlacedItem[] = [];
  const firstRows = new Array<number>(items.length).fill(0);
  let rows = 0;
  for (const form of [absorbed, expanded]) {
    items.forEach((item, i) => {
      if (item.count >= expandedMinTokens !== (form === expanded)) return;
      form.push({ ...item, firstRow: rows });
      firstRows[i] = rows;
      rows += item.count;
    });
  }
  return { absorbed, expanded, rows, firstRows };
}

function slotMapping(group: LayerGroup, items: readonly PlacedItem[], rows: number): Int32Array {
  const slots = new Int32Array(rows);
  for (const { sequence, count, firstRow } of items) {
    const blocks = sequence.blocksOf(group);
    for (let i = 0; i < count; i++) slots[firstRow + i] = blocks.slot(sequence.computed + i);
  }
  return slots;
}

function blockTables(group: LayerGroup, items: readonly PlacedItem[]) {
  const entries = items.map(({ sequence }) => tableEntries(group, sequence));
  const tableWidth = Math.max(1, ...entries);
  const blockTable = new Int32Array(items.length * tableWidth).fill(-1);
  items.forEach(({ sequence }, row) => {
    writeTableRow(blockTable, row * tableWidth, group, sequence);
  });
  const first = items.map(({ sequence }) => group.firstLocalBlock(sequence.computed));
  return { blockTable, tableWidth, firstLocal: Int32Array.from(first) };
}

/** Entries of a sequence's row of the block table. */
export function tableEntries(group: LayerGroup, sequence: Sequence): number {
  const first = group.firstLocalBlock(sequence.computed);
  return group.range.sinkBlocks + Math.max(0, sequence.blocksOf(group).length - first);
}

/** Entry i of a row is block i below the sinks, and block firstLocal + i - sinks from there on. */
export function writeTableRow(
  table: Int32Array,
  at: number,
  group: LayerGroup,
  sequence: Sequence,
): void {
  const sinks = group.range.sinkBlocks;
  const first = group.firstLocalBlock(sequence.computed);
  const blocks = sequence.blocksOf(group);
  const entries = tableEntries(group, sequence);
  for (let i = 0; i < entries; i++) {
    table[at + i] = blocks.block(i < sinks ? i : first + i - sinks);
  }
}

/** Runs of positions [from, to) that the item's queries may see: everything, or sinks and window. */
function keyRuns(group: LayerGroup, { sequence, count }: BatchItem): [number, number][] {
  const end = sequence.computed + count;
  const sinkEnd = group.range.sinkBlocks * blockTokens;
  const localStart = group.firstLocalBlock(sequence.computed) * blockTokens;
  if (localStart <= sinkEnd || sinkEnd === 0)
    return [[localStart <= sinkEnd ? 0 : localStart, end]];
  return [
    [0, sinkEnd],
    [localStart, end],
  ];
}

/**
 * Packs the keys of all expanded items into rounds of at most `capacity` keys. A run of keys is cut
 * every `capacity` keys from its own start, whatever else is in the round: a sequence gets the same
 * bits in any company.
 */
function planRounds(
  group: LayerGroup,
  items: readonly PlacedItem[],
  rowOffset: number,
  capacity: number,
): Round[] {
  const rounds: { slots: number[]; segments: number[] }[] = [];
  for (const item of items) {
    const { sequence, count, firstRow } = item;
    const blocks = sequence.blocksOf(group);
    for (const [from, to] of keyRuns(group, item)) {
      for (let position = from; position < to; position += capacity) {
        const keys = Math.min(capacity, to - position);
        let round = rounds.at(-1);
        if (round === undefined || round.slots.length + keys > capacity) {
          rounds.push((round = { slots: [], segments: [] }));
        }
        const query = [firstRow - rowOffset, count, sequence.computed];
        round.segments.push(...query, round.slots.length, keys, position);
        for (let i = 0; i < keys; i++) round.slots.push(blocks.slot(position + i));
      }
    }
  }
  return rounds.map(({ slots, segments }) => ({
    slots: Int32Array.from(slots),
    segments: Int32Array.from(segments),
  }));
}
