import type { GeneratePart, GenerateResult } from '../../lib/engine/generate-job';
import { Generation, type StartGeneration } from '../../lib/engine/generation';
import { LozaError } from '../../lib/errors';
import { expectLozaError } from '../support/errors';
import { turn } from '../support/fake-runner';

type Listener = Parameters<StartGeneration>[0];

/** The work behind a generation, driven by hand; counts what is asked of it. */
class FakeWork {
  starts = 0;
  cancels = 0;
  listener!: Listener;
  private open!: () => void;
  private readonly opened = new Promise<void>((resolve) => (this.open = resolve));

  /** `slow`: like a prompt that is being tokenised, until `proceed`. */
  constructor(slow = false) {
    if (!slow) this.open();
  }

  readonly start: StartGeneration = async (listener) => {
    this.starts++;
    this.listener = listener;
    await this.opened;
    return () => void this.cancels++;
  };

  proceed(): void {
    this.open();
  }

  part(index: number): GeneratePart {
    const part = { text: `t${index}`, token: 100 + index, index };
    this.listener.onPart(part);
    return part;
  }

  /** Parts with a turn of the event loop between them, then the result. */
  async run(count: number): Promise<void> {
    for (let i = 0; i < count; i++) {
      await turn();
      this.part(i);
    }
    await turn();
    this.listener.onDone([result]);
  }
}

const result = { text: 'all of it', finishReason: 'length' } as GenerateResult;
const failure = new LozaError('ERR_LOZA_OUT_OF_MEMORY', 'none left');

function make(signal?: AbortSignal, slow = false) {
  const work = new FakeWork(slow);
  return { work, generation: new Generation(work.start, signal) };
}

async function texts(generation: Generation, most = Infinity): Promise<string[]> {
  const seen: string[] = [];
  for await (const { text } of generation) {
    seen.push(text);
    if (seen.length >= most) break;
  }
  return seen;
}

// Jest fails a test that leaves an unhandled rejection; this gives one the time to show.
afterEach(async () => {
  await turn();
  await turn();
});

test('nothing starts before it is used', async () => {
  const { work, generation } = make();
  const iterator = generation[Symbol.asyncIterator]();
  await turn();
  expect(work.starts).toBe(0);
  await iterator.return();
  expect([work.starts, work.cancels]).toEqual([0, 0]);
});

const uses: [string, (generation: Generation) => Promise<unknown>, unknown][] = [
  ['result()', (one) => one.result(), result],
  ['a loop', (one) => texts(one), ['t0', 't1', 't2']],
  [
    'both',
    (one) => Promise.all([texts(one), one.result(), texts(one)]),
    [['t0', 't1', 't2'], result, ['t0', 't1', 't2']],
  ],
  [
    'one after the other',
    async (one) => [await one.result(), await texts(one), await one.result(), await texts(one)],
    [result, ['t0', 't1', 't2'], result, ['t0', 't1', 't2']],
  ],
];

test.each(uses)('%s: starts once and sees everything', async (_, use, expected) => {
  const { work, generation } = make();
  const used = use(generation);
  await work.run(3);
  expect(await used).toEqual(expected);
  expect([work.starts, work.cancels]).toEqual([1, 0]);
});

test.each(uses)('%s: an error while it runs reaches all', async (_, use) => {
  const { work, generation } = make();
  const used = use(generation);
  await turn();
  work.part(0);
  work.listener.onError(failure);
  await expect(used).rejects.toBe(failure);
  await expect(generation.result()).rejects.toBe(failure);
  expect(work.cancels).toBe(0);
});

test.each(uses)('%s: a start that fails reaches all', async (_, use) => {
  const generation = new Generation(() => Promise.reject(failure), undefined);
  await expect(use(generation)).rejects.toBe(failure);
  await expect(texts(generation)).rejects.toBe(failure);
});

test.each(uses)('%s: a signal aborted before means no start at all', async (_, use) => {
  const { work, generation } = make(AbortSignal.abort('why'));
  await expectLozaError(() => use(generation), 'ERR_LOZA_ABORTED', /aborted by its signal/);
  await expect(generation.result()).rejects.toMatchObject({ cause: 'why' });
  expect(work.starts).toBe(0);
});

test.each(uses)('%s: an abort while it runs cancels the work once', async (_, use) => {
  const controller = new AbortController();
  const { work, generation } = make(controller.signal);
  const used = use(generation);
  used.catch(() => undefined);
  await turn();
  work.part(0);
  controller.abort('enough');
  expect(work.cancels).toBe(1);
  await expect(used).rejects.toMatchObject({ code: 'ERR_LOZA_ABORTED', cause: 'enough' });
  work.part(1); // what is still on its way is ignored, or at least harmless
  work.listener.onDone([result]);
  await expect(generation.result()).rejects.toMatchObject({ code: 'ERR_LOZA_ABORTED' });
  expect(work.cancels).toBe(1);
});

test.each(uses)(
  '%s: an abort while it starts takes the work back as soon as it can',
  async (_, use) => {
    const controller = new AbortController();
    const { work, generation } = make(controller.signal, true);
    const used = use(generation);
    used.catch(() => undefined);
    await turn();
    controller.abort();
    await expect(used).rejects.toMatchObject({ code: 'ERR_LOZA_ABORTED' });
    expect(work.cancels).toBe(0);
    work.proceed();
    await turn();
    expect([work.starts, work.cancels]).toEqual([1, 1]);
  },
);

test.each(uses)('%s: an abort afterwards changes nothing', async (_, use, expected) => {
  const controller = new AbortController();
  const { work, generation } = make(controller.signal);
  const used = use(generation);
  await work.run(3);
  await used;
  controller.abort();
  expect(work.cancels).toBe(0);
  expect(await use(generation)).toEqual(expected);
});

test('no listener stays on the signal, however it ends', async () => {
  const controller = new AbortController();
  const { signal } = controller;
  const added = jest.spyOn(signal, 'addEventListener');
  const removed = jest.spyOn(signal, 'removeEventListener');
  const ends: ((listener: Listener) => void)[] = [
    ({ onDone }) => onDone([result]),
    ({ onError }) => onError(failure),
  ];
  for (const end of ends) {
    const { work, generation } = make(signal);
    const used = generation.result().catch(() => undefined);
    await turn();
    end(work.listener);
    await used;
  }
  expect(added).toHaveBeenCalledTimes(2);
  expect(removed).toHaveBeenCalledTimes(2);
  expect(removed.mock.calls.map((call) => call[1])).toEqual(
    added.mock.calls.map((call) => call[1]),
  );
});

test('leaving the loop cancels the work once; the result is then an abort', async () => {
  const { work, generation } = make();
  const used = texts(generation, 2);
  void work.run(3);
  expect(await used).toEqual(['t0', 't1']);
  expect(work.cancels).toBe(1);
  await expectLozaError(() => generation.result(), 'ERR_LOZA_ABORTED', /left early/);
});

test('leaving the loop while the work starts cancels it as soon as it can', async () => {
  const { work, generation } = make(undefined, true);
  const used = texts(generation, 1);
  await turn();
  work.part(0);
  expect(await used).toEqual(['t0']);
  expect(work.cancels).toBe(0);
  work.proceed();
  await turn();
  expect(work.cancels).toBe(1);
});

test('an exception in the loop cancels, and is what the caller sees', async () => {
  const { work, generation } = make();
  const loop = async () => {
    for await (const part of generation) throw new Error(`saw ${part.text}`);
  };
  const used = loop();
  used.catch(() => undefined);
  await turn();
  work.part(0);
  await expect(used).rejects.toThrow('saw t0');
  expect(work.cancels).toBe(1);
});

test('leaving the loop at the last part, after the end, is not an abort', async () => {
  const { work, generation } = make();
  const used = generation.result();
  await work.run(2);
  expect(await texts(generation, 2)).toEqual(['t0', 't1']);
  expect(await used).toBe(result);
  expect(await generation.result()).toBe(result);
  expect(work.cancels).toBe(0);
});

test('two loops see every part, each at its own pace', async () => {
  const { work, generation } = make();
  const fast = generation[Symbol.asyncIterator]();
  const slow = generation[Symbol.asyncIterator]();
  const first = [fast.next(), slow.next()];
  await turn();
  const part = work.part(0);
  expect(await Promise.all(first)).toEqual([
    { value: part, done: false },
    { value: part, done: false },
  ]);
  const second = fast.next();
  await work.run(2);
  expect((await second).value).toMatchObject({ text: 't0' });
  expect((await fast.next()).value).toMatchObject({ text: 't1' });
  expect(await fast.next()).toEqual({ value: undefined, done: true });
  expect((await slow.next()).value).toMatchObject({ text: 't0' });
  expect([work.starts, work.cancels]).toEqual([1, 0]);
});

test('parts that came before an error are seen before it', async () => {
  const { work, generation } = make();
  const iterator = generation[Symbol.asyncIterator]();
  const first = iterator.next();
  await turn();
  const parts = [0, 1, 2].map((i) => work.part(i));
  work.listener.onError(failure);
  expect((await first).value).toBe(parts[0]);
  expect((await iterator.next()).value).toBe(parts[1]);
  expect((await iterator.next()).value).toBe(parts[2]);
  await expect(iterator.next()).rejects.toBe(failure);
  expect(await iterator.next()).toEqual({ value: undefined, done: true });
});

test('an error that nobody waits for is no unhandled rejection', async () => {
  const { work, generation } = make();
  const iterator = generation[Symbol.asyncIterator]();
  const first = iterator.next();
  await turn();
  work.part(0);
  await first;
  work.listener.onError(failure);
  await turn();
});
