import { createHash } from 'node:crypto';

import { randomIntegers } from '../bench/statistics';

/** Choices that a seed decides. The same seed gives the same choices on every machine. */
export class Random {
  readonly #next: () => number;

  /** `parts` name what is chosen: each list of parts has choices of its own. */
  constructor(...parts: readonly (string | number)[]) {
    const digest = createHash('sha256').update(parts.join('\0')).digest();
    this.#next = randomIntegers(digest.readUInt32LE(0), 2 ** 32);
  }

  /** An integer of 0..below-1. */
  below(below: number): number {
    return Math.floor((this.#next() / 2 ** 32) * below);
  }

  pick<T>(items: readonly T[]): T {
    return items[this.below(items.length)] as T;
  }

  /** `count` different items, in random order. */
  sample<T>(items: readonly T[], count: number): T[] {
    const rest = [...items];
    for (let i = 0; i < count; i++) {
      const j = i + this.below(rest.length - i);
      [rest[i], rest[j]] = [rest[j] as T, rest[i] as T];
    }
    return rest.slice(0, count);
  }

  digits(count: number): string {
    return Array.from({ length: count }, () => this.below(10)).join('');
  }
}
