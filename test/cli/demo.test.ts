import { describeCli, loza, lozaJson } from './cli';

interface DemoObject {
  promptTokens: number;
  keyToken: number;
  key: string;
  runs: {
    attention: string;
    layerType: string;
    answer: string;
    right: boolean;
    kvResidentBytes: number;
    kvFullBytes: number;
  }[];
  passed: boolean;
}

describeCli('loza demo', () => {
  test('full attention and LoZA find the key, all streaming does not', async () => {
    const { promptTokens, keyToken, key, runs, passed } = await lozaJson<DemoObject>(['demo']);
    expect({ promptTokens, key, passed }).toEqual({
      promptTokens: 5148,
      key: 'violin:80364',
      passed: true,
    });
    expect(promptTokens - keyToken).toBeGreaterThan(1024);
    const [full, zigzag, streaming] = runs;
    expect(full).toMatchObject({ attention: 'full', answer: key, right: true });
    expect(zigzag).toMatchObject({ layerType: '11001100', answer: key, right: true });
    expect(streaming).toMatchObject({ layerType: '11111111', right: false });
    expect(streaming!.answer).not.toBe(key);
    expect(full!.kvResidentBytes).toBe(full!.kvFullBytes);
    expect(zigzag!.kvResidentBytes / zigzag!.kvFullBytes).toBeLessThan(0.65);
    expect(streaming!.kvResidentBytes / streaming!.kvFullBytes).toBeLessThan(0.25);
  });

  test('an interrupt ends it with exit code 130, quietly', async () => {
    const { code, stdout, stderr } = await loza(['demo'], { signal: 'SIGINT' });
    expect({ code, stderr }).toEqual({ code: 130, stderr: '' });
    expect(stdout).toContain('LoZA           ○○●●○○●●');
    expect(Math.max(...stdout.split('\n').map((line) => line.length))).toBeLessThanOrEqual(100);
  });
});
