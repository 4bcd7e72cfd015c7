/** Random numbers that a seed fixes: the same inputs on every machine and every run. */
export class Random {
  private state: Uint32Array;

  constructor(seed: number | string) {
    this.state = new Uint32Array([hash(String(seed)), 0x9e3779b9, 0x243f6a88, 1]);
    for (let i = 0; i < 12; i++) this.bits();
  }

  /** 32 random bits (sfc32). */
  bits(): number {
    const [a = 0, b = 0, c = 0, counter = 0] = this.state;
    const sum = (a + b + counter) >>> 0;
    this.state[0] = b ^ (b >>> 9);
    this.state[1] = c + (c << 3);
    this.state[2] = ((c << 21) | (c >>> 11)) + sum;
    this.state[3] = counter + 1;
    return sum;
  }

  /** In [0, 1). */
  uniform(): number {
    return this.bits() / 2 ** 32;
  }

  /** An integer in [0, limit). */
  below(limit: number): number {
    return Math.floor(this.uniform() * limit);
  }

  normal(): number {
    const radius = Math.sqrt(-2 * Math.log(1 - this.uniform()));
    return radius * Math.cos(2 * Math.PI * this.uniform());
  }

  normals(count: number, scale = 1): Float32Array {
    return Float32Array.from({ length: count }, () => scale * this.normal());
  }

  integers(count: number, limit: number): Int32Array {
    return Int32Array.from({ length: count }, () => this.below(limit));
  }

  /** 0 .. count - 1 in random order. */
  permutation(count: number): Int32Array {
    const order = Int32Array.from({ length: count }, (_, i) => i);
    for (let i = count - 1; i > 0; i--) {
      const j = this.below(i + 1);
      [order[i], order[j]] = [order[j]!, order[i]!];
    }
    return order;
  }
}

/** FNV-1a. */
function hash(text: string): number {
  let value = 0x811c9dc5;
  for (const character of text)
    value = Math.imul(value ^ character.codePointAt(0)!, 0x01000193) >>> 0;
  return value;
}
