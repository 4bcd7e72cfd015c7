const K = 1024;

export type PanelName = 'kernel' | 'prefill' | 'decode';

/**
 * Figure 3 of the LoZA paper: LongCat ZigZag Attention over full attention on H20, by context. The
 * kernel is streaming decode attention against full; prefill and decode are those of the model.
 */
const points: Readonly<Record<PanelName, readonly number[]>> = {
  kernel: [1.9, 2.6, 3.7, 5.8, 9.9, 16.9],
  prefill: [0.99, 1.05, 1.11, 1.2, 1.34, 1.42, 1.55],
  decode: [0.98, 1.045, 1.12, 1.22, 1.31, 1.345, 1.45],
};
const starts: Readonly<Record<PanelName, number>> = {
  kernel: 8 * K,
  prefill: 4 * K,
  decode: 4 * K,
};

/** The paper's speed-up at a context; undefined where it has no point. */
export function paperPoint(panel: PanelName, context: number): number | undefined {
  return points[panel][Math.log2(context / starts[panel])];
}

/** Contexts of a panel: doublings from where the paper starts, or later. */
export function panelContexts(panel: PanelName, from: number, to: number): number[] {
  const first = panel === 'kernel' ? Math.min(2 * from, to) : from;
  const contexts: number[] = [];
  for (let context = first; context <= to; context *= 2) contexts.push(context);
  return contexts;
}
