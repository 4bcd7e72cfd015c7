import { overrideConfig } from '../../lib/checkpoint/config-overrides';
import { configOf } from '../support/configs';
import { expectLozaError } from '../support/errors';

const int = { max: 1000 };

test('layers, in both spellings, with what counts them', () => {
  const streaming = { layer_type: '10111000', sink_size: 128, recent_size: 896 };
  const longcat = configOf({
    num_layers: 4,
    num_hidden_layers: 8,
    streaming_sparse_attention: streaming,
  });
  const shorter = overrideConfig(longcat, { layers: 3 });
  expect(shorter.int('num_layers', int)).toBe(3);
  expect(shorter.has('num_hidden_layers')).toBe(false);
  const object = shorter.object('streaming_sparse_attention');
  expect(object?.string('layer_type')).toBe('101110');
  expect(object?.int('recent_size', int)).toBe(896);
  const longer = overrideConfig(longcat, { layers: 5 });
  expect(longer.object('streaming_sparse_attention')?.string('layer_type')).toBe('1011100010');

  const deepseek = configOf({
    num_hidden_layers: 6,
    first_k_dense_replace: 3,
    mlp_layer_types: ['dense', 'dense', 'dense', 'sparse', 'sparse', 'sparse'],
  });
  const two = overrideConfig(deepseek, { layers: 2 });
  expect(two.int('num_hidden_layers', int)).toBe(2);
  expect(two.int('first_k_dense_replace', int)).toBe(2);
  expect(two.strings('mlp_layer_types')).toEqual(['dense', 'dense']);
  expect(overrideConfig(deepseek, { layers: 4 }).int('first_k_dense_replace', int)).toBe(3);
});

test('experts: a token takes no more than there are', () => {
  const config = configOf({ n_routed_experts: 512, zero_expert_num: 256, moe_topk: 12 });
  const some = overrideConfig(config, { experts: 64, zeroExperts: 32 });
  expect(some.int('n_routed_experts', int)).toBe(64);
  expect(some.int('zero_expert_num', int)).toBe(32);
  expect(some.int('moe_topk', int)).toBe(12);
  expect(overrideConfig(config, { experts: 4, zeroExperts: 2 }).int('moe_topk', int)).toBe(6);
});

test('what a config does not have cannot be overridden', async () => {
  const config = configOf({ num_hidden_layers: 2 });
  const override = () => overrideConfig(config, { experts: 4 });
  await expectLozaError(override, 'ERR_LOZA_CONFIG', /n_routed_experts is missing/);
});
