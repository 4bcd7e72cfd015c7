import { latentStore } from '../../../lib/selftest/cases/latent-store';
import { forEachDevice, testDataChecks } from '../../support/devices';
import { expectLozaError } from '../../support/errors';
import { host } from '../../../lib/selftest/host-tensor';
import { sweep } from '../../support/sweep';

forEachDevice('latent_store', (lab) => {
  sweep(lab, latentStore);

  const store = (slots: number[], rope = 2) =>
    lab.run((ops) => {
      const cache = lab.upload(host(lab.activation, [4, 6], new Float32Array(24)));
      const [kv, weight] = [ops.activation(slots.length, 6), ops.float(4)];
      for (const tensor of [kv, weight]) ops.fill(tensor, 1);
      const table = ops.float(slots.length, rope);
      ops.latentStore(
        cache,
        kv,
        weight,
        table,
        lab.upload(host('i32', [slots.length], slots)),
        0,
        1,
      );
      return { cache };
    });

  testDataChecks(lab.kind).each([4, -2, 2 ** 31 - 1])(
    'slot %i outside the cache fails the stream',
    async (slot) => {
      await expectLozaError(
        () => store([0, slot]),
        'ERR_LOZA_INTERNAL',
        /outside a cache of 4 slots/,
      );
      await expect(store([1])).resolves.toBeDefined();
    },
  );

  test('a rope table of another width is refused', async () => {
    await expectLozaError(() => store([0], 4), 'ERR_LOZA_INTERNAL', /latent_store kv/);
  });
});
