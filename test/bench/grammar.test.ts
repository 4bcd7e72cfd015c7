import {
  expandTests,
  normalizeArguments,
  parseCount,
  parseCounts,
  parsePair,
  testLabel,
  testLength,
} from '../../lib/bench/grammar';

test('counts: capitals count in 1,024, small letters in 1,000', () => {
  const counts = ['512', '8K', '8k', '1M', '1m', '1.5K', ' 0 '].map(parseCount);
  expect(counts).toEqual([512, 8192, 8000, 2 ** 20, 1e6, 1536, 0]);
  for (const bad of ['', 'x', '-1', '1.5', '8KB', '1e3', '99999999999', '1.0001K']) {
    expect(() => parseCount(bad)).toThrow(/whole number/);
  }
});

test('lists and ranges as llama-bench defines them', () => {
  expect(parseCounts('512,8K')).toEqual([512, 8192]);
  expect(parseCounts('1-4')).toEqual([1, 2, 3, 4]);
  expect(parseCounts('128-512+128')).toEqual([128, 256, 384, 512]);
  expect(parseCounts('512-4K*2')).toEqual([512, 1024, 2048, 4096]);
  expect(parseCounts('0,512-1500*2')).toEqual([0, 512, 1024]);
  for (const bad of ['4-1', '1-8*1', '0-8*2', '1-8+0', '1-8/2', '1-', '-8', '1-5000']) {
    expect(() => parseCounts(bad)).toThrow();
  }
});

test('a pair is a prompt and a generation', () => {
  expect(parsePair('8K,128')).toEqual([8192, 128]);
  for (const bad of ['512', '512,0', '0,4', '1,2,3'])
    expect(() => parsePair(bad)).toThrow(/512,128/);
});

test('labels and lengths', () => {
  const test = { prompt: 8192, generate: 0, depth: 131072, batch: 1, chunk: 512 };
  expect(testLabel(test)).toBe('pp8192 @ d131072');
  expect(testLabel({ ...test, generate: 128, depth: 0 })).toBe('pp8192+tg128');
  expect(testLabel({ ...test, prompt: 0, generate: 128, depth: 0 })).toBe('tg128');
  expect(testLength(test)).toBe(131072 + 8192);
});

test('a grid is every combination; 0 leaves a kind of test out', () => {
  const tests = expandTests({
    ...{ prompts: [512, 0], generates: [0], pairs: [[256, 16]] },
    ...{ depths: [0, 1024], batches: [1, 2], chunks: [512] },
  });
  expect(tests.map(testLabel)).toEqual([
    ...['pp512', 'pp256+tg16', 'pp512 @ d1024', 'pp256+tg16 @ d1024'],
    ...['pp512', 'pp256+tg16', 'pp512 @ d1024', 'pp256+tg16 @ d1024'],
  ]);
  expect(tests.map(({ batch }) => batch)).toEqual([1, 1, 1, 1, 2, 2, 2, 2]);
});

test('flags with two letters become long ones, of this command only', () => {
  const args = ['--json', 'bench', '-pg', '512,128', '-ub', '512', '-p', '8'];
  const long = ['--json', 'bench', '--pg', '512,128', '--ubatch-size', '512', '-p', '8'];
  expect(normalizeArguments(args)).toEqual(long);
  const other = ['generate', 'DIR', '-pg'];
  expect(normalizeArguments(other)).toEqual(other);
});
