import { readFile } from 'node:fs/promises';
import { join } from 'node:path';

import type { YarnScaling } from '../checkpoint/rope-config';
import { configLimits } from '../checkpoint/config';
import {
  JsonNumber,
  parseJson,
  writeJson,
  type JsonObject,
  type JsonValue,
} from '../checkpoint/json';
import type { LoadPlan } from '../load-model';
import { writeAtomically } from './atomic-file';
import type { RunFolder } from './run-folder';

/**
 * The checkpoint's config.json with `changes`, and with YaRN where the plan stretches the positions.
 * Without either it stays as it is, byte for byte.
 */
export async function writeConfig(
  folder: RunFolder,
  plan: LoadPlan,
  changes: ReadonlyMap<string, JsonValue> = new Map(),
): Promise<void> {
  const file = join(plan.checkpoint.dir, 'config.json');
  const bytes = await readFile(file);
  const config = parseJson(bytes, { ...configLimits, file }) as JsonObject;
  const stretched = stretchedRope(config, plan);
  const isSame = changes.size + stretched.length === 0;
  const changed = new Map([...config, ...stretched, ...changes]);
  const text = isSame ? bytes.toString() : `${writeJson(changed)}\n`;
  await writeAtomically(folder.file('config.json'), text);
}

/** As lib/checkpoint/rope-config.ts reads it, in the section that is there. */
function stretchedRope(
  config: JsonObject,
  { rope, model, maxPosition }: LoadPlan,
): [string, JsonValue][] {
  const { scaling } = rope;
  if (rope === model.mla.rope || scaling === null) return [];
  const sections = ['rope_scaling', 'rope_parameters'].filter((key) => config.get(key) ?? false);
  const written = sections.length > 0 ? sections : ['rope_scaling'];
  return [
    ['max_position_embeddings', number(maxPosition)],
    ...written.map((key): [string, JsonValue] => {
      const before = config.get(key);
      const section = new Map(before instanceof Map ? before : []);
      for (const [name, value] of yarnFields(scaling)) section.set(name, value);
      const kinds = ['rope_type', 'type'].filter((name) => section.has(name));
      for (const name of kinds.length > 0 ? kinds : ['type']) section.set(name, 'yarn');
      return [key, section];
    }),
  ];
}

function yarnFields(scaling: YarnScaling): [string, JsonValue][] {
  const { factor, originalMaxPosition, betaFast, betaSlow, truncate } = scaling;
  const optional = {
    mscale: scaling.mscale,
    mscale_all_dim: scaling.mscaleAllDim,
    attention_factor: scaling.attentionFactor,
  };
  return [
    ['factor', number(factor)],
    ['original_max_position_embeddings', number(originalMaxPosition)],
    ['beta_fast', number(betaFast)],
    ['beta_slow', number(betaSlow)],
    ...Object.entries(optional).flatMap(([name, value]): [string, JsonValue][] =>
      value === undefined ? [] : [[name, number(value)]],
    ),
    ['truncate', truncate],
  ];
}

const number = (value: number): JsonNumber => new JsonNumber(String(value));
