import { growth, MemoryWatch, trend } from '../../lib/cli/memory-watch';

test('growth is between the halves, and peaks are none', () => {
  expect(growth([10, 10, 12, 30, 11, 10])).toBe(0);
  expect(growth([10, 20, 30, 40, 50, 60])).toBe(30);
  expect(growth([50, 40, 30, 20])).toBe(-20);
  expect(growth([7])).toBe(0);
});

describe('the trend of what is allocated', () => {
  const cycles = Array.from({ length: 20 }, (_, i) => 200 * (i + 1));
  const noise = (i: number) => 40_000 * Math.sin(i * i);
  const of = (bytesAt: (cycle: number, i: number) => number) =>
    trend(
      cycles,
      cycles.map((cycle, i) => 1e8 + bytesAt(cycle, i) + noise(i)),
    );

  test('is what each cycle of the second half adds', () => {
    expect(of((cycle) => 1024 * cycle)).toBeGreaterThan(800);
    expect(of((cycle) => 1024 * cycle)).toBeLessThan(1100);
    expect(of((cycle, i) => 1024 * cycle + (i < 15 ? 0 : 6e5))).toBeGreaterThan(800);
    expect(Math.abs(of(() => 0)!)).toBeLessThan(100);
  });

  test('is not what comes at the beginning, or once', () => {
    expect(Math.abs(of((cycle) => 1024 * Math.min(cycle, 1800))!)).toBeLessThan(100);
    for (const at of [11, 14, 17]) {
      expect(Math.abs(of((_, i) => (i < at ? 0 : 6e5))!)).toBeLessThan(100);
    }
    expect(Math.abs(of((_, i) => (i % 7 === 5 ? 3e6 : 0))!)).toBeLessThan(100);
  });

  test('says nothing of few cycles', () => {
    expect(trend([10, 20, 30, 40], [0, 1e6, 2e6, 3e6])).toBeNull();
  });
});

describe('a cycle', () => {
  const kept: unknown[] = [];
  const verdict = async (cycle: () => unknown) => {
    const memory = new MemoryWatch('cpu');
    for (let done = 0; done <= 3600; done++) {
      if (done % 180 === 0) await memory.look(done); // about as many looks as a soak has
      cycle();
    }
    kept.length = 0;
    return memory.report();
  };

  test.each([
    ['objects', () => kept.push(Array.from({ length: 128 }, () => 0.5))],
    ['memory outside of the heap', () => kept.push(new Uint8Array(1024))],
  ])('that keeps 1 KiB in %s does not pass', async (_, leak) => {
    const { trend, passed } = await verdict(leak);
    expect(trend).toBeGreaterThan(700);
    expect(trend).toBeLessThan(1600);
    expect(passed).toBe(false);
  });

  test('that keeps nothing passes, whatever it uses meanwhile', async () => {
    const { trend, passed } = await verdict(() => [new Uint8Array(100_000), new Array(5000)]);
    expect(trend).toBeLessThan(100);
    expect(passed).toBe(true);
  });
});
