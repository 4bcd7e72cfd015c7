/**
 * Estimates how long the rest of a prompt takes, from the chunks so far. Attention makes a token
 * slower the more lies before it: a token at position p is taken to cost a + b·p, and a and b fit
 * what was measured, in the company there was.
 */
export class ReadingPace {
  private chunks = 0;
  // Sums over chunks: tokens, and tokens times position, cost, position², position · cost.
  private weight = 0;
  private x = 0;
  private y = 0;
  private xx = 0;
  private xy = 0;

  /** Tokens `from` to `to` took `ms` milliseconds. */
  add(from: number, to: number, ms: number): void {
    const tokens = to - from;
    const position = (from + to) / 2;
    this.chunks++;
    this.weight += tokens;
    this.x += tokens * position;
    this.y += ms;
    this.xx += tokens * position * position;
    this.xy += ms * position;
  }

  /** Milliseconds for the tokens `from` to `to`; undefined while too little is known. */
  estimate(from: number, to: number): number | undefined {
    if (this.chunks < 2) return undefined;
    const { weight, x, y, xx, xy } = this;
    const slope = Math.max(0, (weight * xy - x * y) / (weight * xx - x * x));
    const start = (y - slope * x) / weight;
    // A line that starts below zero goes through it.
    const [a, b] = start < 0 ? [0, xy / xx] : [start, slope];
    return a * (to - from) + (b * (to * to - from * from)) / 2;
  }
}
