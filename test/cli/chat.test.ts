import { describeCli, expectFailure, golden, loza, tiny } from './cli';

interface Turn {
  text: string;
  usage: { promptTokens: number };
}

const turnsOf = (stdout: string) =>
  stdout
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line) as Turn);

describeCli('loza chat', () => {
  const chat = ['chat', tiny, '-n', '8'];

  test('each line is a turn, and sees those before it', async () => {
    const { code, stdout, stderr } = await loza([...chat, '--json'], { input: 'Hi\n\nHi\n' });
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    const [first, second, ...more] = turnsOf(stdout);
    expect(more).toEqual([]);
    expect(second!.usage.promptTokens).toBeGreaterThan(first!.usage.promptTokens + 8);
  });

  test('/reset forgets, /exit ends', async () => {
    const input = 'Hi\n/reset\nHi\n/exit\nHi\n';
    const turns = turnsOf((await loza([...chat, '--json'], { input })).stdout);
    expect(turns).toHaveLength(2);
    expect(turns[1]!.text).toBe(turns[0]!.text);
    expect(turns[1]!.usage).toEqual(turns[0]!.usage);
  });

  test('a system message stays over /reset', async () => {
    const input = 'Hi\n/reset\nHi\n';
    const system = await loza([...chat, '--json', '--system', 'Be brief'], { input });
    const plain = await loza([...chat, '--json'], { input });
    const counts = turnsOf(system.stdout).map(({ usage }) => usage.promptTokens);
    expect(counts[0]).toBeGreaterThan(turnsOf(plain.stdout)[0]!.usage.promptTokens);
    expect(counts[1]).toBe(counts[0]);
  });

  test('answers are text without --json', async () => {
    const { code, stdout, stderr } = await loza(chat, { input: 'Hi' });
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    const json = await loza([...chat, '--json'], { input: 'Hi' });
    expect(stdout).toBe(`${turnsOf(json.stdout)[0]!.text}\n`);
  });

  test('a model without a tokenizer cannot chat', async () => {
    await expectFailure(['chat', golden('longcat-full')], /no tokenizer\.json/, { input: 'Hi\n' });
  });
});
