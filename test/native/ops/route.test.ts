import type { RouterOptions } from '../../../lib/native/ops';
import { route } from '../../../lib/selftest/cases/route';
import { forEachDevice } from '../../support/devices';
import { expectLozaError } from '../../support/errors';
import { host } from '../../../lib/selftest/host-tensor';
import { sweep } from '../../support/sweep';

const options: RouterOptions = {
  ...{ topK: 3, groups: 1, topGroups: 1, normalize: false, scale: 1 },
  scoring: 'softmax',
  groupScore: 'max',
};

forEachDevice('route', (lab) => {
  sweep(lab, route);

  const chosen = async (logits: number[], wanted: Partial<RouterOptions> = {}) =>
    lab.run((ops) =>
      ops.route(lab.upload(host('f32', [1, logits.length], logits)), undefined, {
        ...options,
        ...wanted,
      }),
    );

  test('equal logits go to the lower ids, in order', async () => {
    expect([...(await chosen([1, 2, 2, 2, 1, 2]))['ids']!]).toEqual([1, 2, 3]);
  });

  test.each(['softmax', 'sigmoid'] as const)(
    '%s of NaN logits still gives distinct experts',
    async (scoring) => {
      for (const logits of [
        [NaN, NaN, NaN, NaN],
        [1, NaN, 2, 3],
        [Infinity, 0, 0, Infinity],
      ]) {
        const ids = [...(await chosen(logits, { scoring }))['ids']!];
        expect(new Set(ids).size).toBe(3);
        expect(ids.every((id) => id >= 0 && id < 4)).toBe(true);
      }
    },
  );

  test('sigmoid passes over experts whose logit is NaN', async () => {
    expect([...(await chosen([1, NaN, 2, 3], { scoring: 'sigmoid' }))['ids']!]).toEqual([3, 2, 0]);
  });

  test.each([
    ['more choices than experts', { topK: 7 }, /cannot choose 7/],
    ['more choices than the best groups hold', { groups: 3, topGroups: 1 }, /cannot choose 3/],
    ['groups that do not divide', { groups: 4 }, /4 groups do not divide 6/],
    ['more best groups than groups', { groups: 2, topGroups: 3 }, /top_groups/],
  ])('%s are refused', async (_, wanted, message) => {
    await expectLozaError(() => chosen([1, 2, 3, 4, 5, 6], wanted), 'ERR_LOZA_INTERNAL', message);
  });
});
