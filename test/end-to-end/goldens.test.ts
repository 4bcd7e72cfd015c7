import { LanguageModel } from '../../lib';
import type { DeviceKind } from '../../lib/native/binding';
import { forEachDeviceKind } from '../support/devices';
import { goldenCheckpoints, readExpected, standardDeviation } from '../support/goldens';

/** Largest error of a logit, as a fraction of the logits' standard deviation. */
const tolerance = 1e-3;
/** A greedy token whose lead is smaller than this may differ. */
const margin = 0.01;

for (const { name, dir, missing } of goldenCheckpoints()) {
  if (missing) test.skip(`${name} skipped: not in this checkout`, () => {});
  else forEachDeviceKind(`${name} gives what Hugging Face transformers gives`, compare);

  function compare(kind: DeviceKind): void {
    const prompts = readExpected(dir);
    let model: LanguageModel;
    beforeAll(async () => {
      model = await LanguageModel.load(dir, { device: kind, dtype: 'float32' });
    });
    afterAll(() => model.close());

    test.each(prompts)('logits of $name, $length tokens', async (prompt) => {
      const { logits, rows, vocabSize } = await model.score(prompt.tokens, {
        positions: prompt.positions,
      });
      expect([rows, vocabSize]).toEqual([prompt.positions.length, model.info.vocabSize]);
      expect(logits).toHaveLength(prompt.logits.length);
      const errors = logits.map((value, i) => Math.abs(value - (prompt.logits[i] ?? NaN)));
      const worst = errors.reduce((a, b) => (b <= a ? a : b), 0); // NaN wins
      expect(worst / standardDeviation(prompt.logits)).toBeLessThan(tolerance);
    });

    test.each(prompts)('greedy tokens of $name, $length tokens', async (prompt) => {
      const options = { maxNewTokens: prompt.greedy.length, ignoreEos: true, temperature: 0 };
      const { tokens } = await model.generate(prompt.tokens, options).result();
      const decided = prompt.margins.findIndex((lead) => lead < margin);
      const compared = decided < 0 ? prompt.greedy.length : decided;
      expect(compared).toBeGreaterThan(0);
      expect(tokens.slice(0, compared)).toEqual(prompt.greedy.slice(0, compared));
    });
  }
}
