import { fullRange, type KeyRange, type Ops } from '../../../lib/native/ops';
import { zigzag } from '../../support/cases/key-range';
import { compare } from '../../support/compare';
import { forEachDevice } from '../../support/devices';
import { host } from '../../support/host-tensor';
import { Random } from '../../support/random';

const [heads, nope, rope, value, latent] = [4, 16, 8, 12, 32];
const [length, queries] = [1300, 5];
const scale = (nope + rope) ** -0.5;

/** One sequence of latents, its last `queries` tokens as queries. */
function makeInputs() {
  const random = new Random('forms');
  return {
    cache: host('f32', [11 * 128, latent + rope], random.normals(11 * 128 * (latent + rope))),
    kvB: host(
      'bf16',
      [heads * (nope + value), latent],
      random.normals(heads * (nope + value) * latent, 0.2),
    ),
    q: host('f32', [queries, heads, nope + rope], random.normals(queries * heads * (nope + rope))),
    slots: host(
      'i32',
      [length],
      Int32Array.from({ length }, (_, i) => i),
    ),
  };
}

forEachDevice('attention', (lab) => {
  const expanded = (range: KeyRange) => (ops: Ops) => {
    const { cache, kvB, q, slots } = lab.uploadAll(makeInputs());
    const rows = ops.gatherRows(cache, slots);
    const kv = ops.linear(rows.slice(1, 0, latent), { tensor: kvB });
    const state = { out: ops.float(queries, heads, value), lse: ops.float(queries, heads) };
    ops.fill(state.lse, -Infinity);
    const segments = ops.upload(Int32Array.of(0, queries, length - queries, 0, length, 0), 1, 6);
    const keys = kv.reshape(length, heads, nope + value);
    ops.attentionPrefill(
      state,
      q,
      keys,
      rows.slice(1, latent, latent + rope),
      segments,
      scale,
      range,
    );
    return { out: state.out };
  };

  const absorbed = (range: KeyRange) => (ops: Ops) => {
    const { cache, kvB, q } = lab.uploadAll(makeInputs());
    const perHead = (nope + value) * latent;
    const wUk = kvB.view('bf16', [heads, latent, nope], [perHead, 1, latent], 0);
    const wUv = kvB.view('bf16', [heads, value, latent], [perHead, latent, 1], nope * latent);
    const query = ops.float(queries, heads, latent + rope);
    ops.headLinear(query.slice(2, 0, latent), q.slice(2, 0, nope), wUk);
    ops.cast(query.slice(2, latent, latent + rope), q.slice(2, nope, nope + rope));
    const view = {
      blockTable: ops.upload(
        Int32Array.from({ length: 11 }, (_, i) => i),
        1,
        11,
      ),
      firstLocal: ops.upload(Int32Array.of(range.sinkBlocks)),
    };
    const starts = ops.upload(Int32Array.of(0, queries));
    const positions = ops.upload(
      Int32Array.from({ length: queries }, (_, i) => length - queries + i),
    );
    const sum = ops.attentionDecode(query, cache, latent, view, starts, positions, scale, range);
    const out = ops.float(queries, heads, value);
    ops.headLinear(out, sum, wUv);
    return { out };
  };

  test.each([
    ['full', fullRange],
    ['zigzag', zigzag],
  ])('%s: absorbed equals expanded', async (_, range) => {
    const [a, e] = [await lab.run(absorbed(range)), await lab.run(expanded(range))];
    compare('absorbed', a['out']!, e['out']!, [queries, heads, value], { relative: 3e-6 });
  });
});
