import { existsSync } from 'node:fs';
import path from 'node:path';

import { inWindow } from '../../lib/eval/arms';
import { evaluate, type EvalProgress } from '../../lib/index';
import { cellOf, type EvalAnswer, type EvalResult } from '../../lib/eval/evaluate';
import { drawHeatMap } from '../../lib/eval/heat-map';
import { resolveEvalOptions } from '../../lib/eval/options';
import { describeEval, formatCellsCsv } from '../../lib/eval/report';

const tiny = path.join(__dirname, '../../models/loza-tiny');
const describeTiny = existsSync(path.join(tiny, 'tokenizer.json')) ? describe : describe.skip;

describeTiny('evaluate', () => {
  const load = { device: 'cpu' } as const;

  test('all arms get the same prompts, and answer alike where the window holds them', async () => {
    const seen: EvalProgress[] = [];
    const { arms } = await evaluate(tiny, {
      ...{ tasks: ['passkey', 'alias'], lengths: [400], depths: [0.5], samples: 2, windows: 1 },
      ...{ attention: ['full', 'even', 'streaming'], load, seed: 3 },
      onProgress: (progress) => seen.push(progress),
    });
    expect(arms.map(({ layerType }) => layerType)).toEqual(['00000000', '10101010', '11111111']);
    const [full] = arms;
    for (const { cells, perplexity, answers } of arms) {
      expect(answers.map((answer) => ({ ...answer, arm: 'full' }))).toEqual(full?.answers);
      expect(cells).toEqual(full?.cells);
      expect(cells.map(({ task, count, inWindow: inside }) => [task, count, inside])).toEqual([
        ['passkey', 2, 1],
        ['alias', 2, 1],
      ]);
      expect(perplexity.map(({ from, to, count }) => [from, to, count])).toEqual([
        [1, 128, 127],
        [128, 256, 128],
        [256, 400, 144],
      ]);
      perplexity.forEach((bucket, i) => {
        expect(bucket.loss).toBeCloseTo(full?.perplexity[i]?.loss as number, 4);
        expect(bucket.loss).toBeLessThan(Math.log(2048));
      });
    }
    expect(seen.map(({ done }) => done).at(-1)).toBe(15);
    expect(seen.every(({ total }) => total === 15)).toBe(true);
  });

  test('stops at once when the signal fires', async () => {
    const stop = new AbortController();
    const running = evaluate(tiny, {
      ...{ tasks: ['multikey'], lengths: [2048], samples: 100, attention: ['full'], load },
      signal: stop.signal,
      onProgress: () => stop.abort(),
    });
    await expect(running).rejects.toMatchObject({ code: 'ERR_LOZA_ABORTED' });
  });

  test('lengths beyond the positions of the model', async () => {
    await expect(evaluate(tiny, { lengths: [2 ** 20], load })).rejects.toMatchObject({
      code: 'ERR_LOZA_CONTEXT_LENGTH',
      message: expect.stringContaining('yarnFactor') as string,
    });
  });
});

describe('options', () => {
  test.each([
    [{ tasks: ['nothing'] }, 'tasks'],
    [{ lengths: [100] }, 'lengths'],
    [{ depths: [1.5] }, 'depths'],
    [{ samples: 0 }, 'samples'],
    [{ windows: -1 }, 'windows'],
    [{ attention: ['half'] }, 'attention'],
    [{ haystack: 7 }, 'haystack'],
    [{ seed: 0.5 }, 'seed'],
    [{ sample: 3 }, 'sample'],
    [{ load: { attention: 'full' } }, 'attention'],
  ])('%j is refused by its name', (options, name) => {
    const resolve = () => resolveEvalOptions(options as object);
    expect(resolve).toThrow(expect.objectContaining({ code: 'ERR_LOZA_INVALID_ARG' }) as Error);
    expect(resolve).toThrow(name);
  });
});

describe('inWindow', () => {
  const window = { sinkBlocks: 1, localBlocks: 7 };
  test.each([
    [0, 5000, true],
    [127, 5000, true],
    [128, 5000, false],
    [4223, 5000, false],
    [4224, 5000, true],
    [500, 1023, true],
    [128, 1024, false],
  ])('token %d from position %d: %j', (place, at, seen) => {
    expect(inWindow(place, at, window)).toBe(seen);
  });
});

describe('reports', () => {
  const answer = (arm: string, depth: number, right: boolean): EvalAnswer => ({
    ...{ arm, task: 'passkey', length: 4096, depth, tokens: 4000, places: [9], expected: ['1'] },
    ...{ answer: '', recall: right ? 1 : 0, right, inWindow: depth === 1 },
  });
  const arm = (name: string, layerType: string, rights: readonly boolean[]) => {
    const answers = rights.map((right, i) => answer(name, i / (rights.length - 1), right));
    const cells = answers.map((one) => cellOf([one]));
    return { name, layerType, device: 'cpu', dtype: 'float32', cells, answers, perplexity: [] };
  };
  const result: EvalResult = {
    ...{ dir: 'models/x<y', seed: 0, samples: 1 },
    arms: [arm('full', '00', [true, true, true]), arm('loza', '10', [false, true, true])],
  };

  test('a cell counts, and its depth is that of all', () => {
    expect(cellOf([answer('a', 0.5, true), answer('a', 0.5, false)])).toMatchObject({
      ...{ count: 2, right: 1, share: 0.5, recall: 0.5, depth: 0.5, inWindow: 0 },
    });
    expect(cellOf([answer('a', 0, true), answer('a', 1, true)])).toMatchObject({
      ...{ depth: undefined, share: 1, inWindow: 0.5 },
    });
  });

  test('the table has the share, its interval, and what was kept', () => {
    const text = describeEval(result);
    expect(text).toMatch(
      /^passkey +4K +33\.3 +100 \[43\.9, 100\] +66\.7 \[20\.8, 93\.9\] +66\.7$/m,
    );
    expect(text).toMatch(/^ +50 +100$/m);
  });

  test('CSV has a line for each cell', () => {
    const lines = formatCellsCsv(result).split('\n');
    expect(lines).toHaveLength(7);
    expect(lines[4]).toBe('loza,"10",passkey,4096,0,1,0,0.0000,0.0000,0.7935,0.0000,0.0000');
  });

  test('the heat map has a panel for each arm and a box for each cell', () => {
    const svg = drawHeatMap(result) as string;
    expect(svg.match(/rx="3"/g)).toHaveLength(6);
    expect(svg.match(/fill="rgb\(178,24,43\)"/g)).toHaveLength(1);
    expect(svg).toContain('x&lt;y');
    expect(svg.match(/<text[^>]*>(full {2}00|loza {2}10)</g)).toHaveLength(2);
    expect(drawHeatMap({ ...result, arms: [] })).toBeUndefined();
  });
});
