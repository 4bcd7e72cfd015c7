import { configCaps, type Config } from './config';
import { JsonNumber, type JsonObject, type JsonValue } from './json';

/** Other sizes than config.json says, for benchmarks: a slice of a model that fits a device. */
export interface ConfigOverrides {
  layers?: number | undefined;
  /** Routed experts, zero experts not counted. */
  experts?: number | undefined;
  zeroExperts?: number | undefined;
}

const number = (value: number): JsonNumber => new JsonNumber(String(value));

/**
 * The config with these sizes, in whatever spelling it has. What counts layers or experts follows:
 * dense layers and the experts of a token are at most as many, a streaming pattern goes on as it
 * began.
 */
export function overrideConfig(config: Config, overrides: ConfigOverrides): Config {
  const { layers, experts, zeroExperts } = overrides;
  let changed = config;
  if (layers !== undefined) changed = changed.with(layerChanges(config, layers));
  if (experts !== undefined)
    changed = changed.with(sizeChange(config, 'n_routed_experts', experts));
  if (zeroExperts !== undefined) {
    changed = changed.with(sizeChange(config, 'zero_expert_num', zeroExperts));
  }
  if (experts === undefined && zeroExperts === undefined) return changed;
  return changed.with(topKChange(changed));
}

function layerChanges(config: Config, layers: number): JsonObject {
  const cap = { max: configCaps.layers };
  const key = config.has('num_layers') ? 'num_layers' : 'num_hidden_layers';
  const before = config.int(key, cap);
  const changes: JsonObject = new Map<string, JsonValue>([
    ['num_hidden_layers', null],
    [key, number(layers)],
  ]);
  const dense = config.int('first_k_dense_replace', { min: 0, ...cap, default: undefined });
  if (dense !== undefined) changes.set('first_k_dense_replace', number(Math.min(dense, layers)));
  const types = config.strings('mlp_layer_types');
  if (types !== undefined) changes.set('mlp_layer_types', repeated(types, layers));
  const streaming = config.value('streaming_sparse_attention');
  const pattern = config
    .object('streaming_sparse_attention')
    ?.string('layer_type', { default: '' });
  if (streaming instanceof Map && pattern !== undefined) {
    const length = Math.round((pattern.length / before) * layers);
    const layerType = repeated([...pattern], length).join('');
    changes.set('streaming_sparse_attention', new Map([...streaming, ['layer_type', layerType]]));
  }
  return changes;
}

function sizeChange(config: Config, key: string, value: number): JsonObject {
  if (!config.has(key)) throw config.problem(`${key} is missing, so it cannot be overridden`);
  return new Map([[key, number(value)]]);
}

function topKChange(config: Config): JsonObject {
  const cap = { min: 0, max: 2 * configCaps.experts };
  const choices =
    config.int('n_routed_experts', cap) + config.int('zero_expert_num', { ...cap, default: 0 });
  const keys = ['moe_topk', 'num_experts_per_tok'].filter((key) => config.has(key));
  return new Map(keys.map((key) => [key, number(Math.min(config.int(key, cap), choices))]));
}

function repeated<T>(items: readonly T[], length: number): T[] {
  return Array.from({ length }, (_, i) => items[i % items.length] as T);
}
