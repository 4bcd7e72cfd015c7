import type { Checkpoint } from '../checkpoint/checkpoint';
import { LozaError, show } from '../errors';
import { deepseek } from './deepseek';
import { longcatFlash } from './longcat-flash';
import type { ModelFamily } from './model';

const families: readonly ModelFamily[] = [longcatFlash, deepseek];

/** The family that a checkpoint belongs to, by its architecture, else by its model type. */
export function findFamily(
  checkpoint: Pick<Checkpoint, 'architecture' | 'modelType'>,
): ModelFamily {
  const { architecture, modelType } = checkpoint;
  const family =
    architecture !== undefined
      ? families.find((one) => one.architectures.includes(architecture))
      : families.find((one) => modelType !== undefined && one.modelTypes.includes(modelType));
  if (family !== undefined) return family;
  const [key, value] =
    architecture !== undefined ? ['architectures', architecture] : ['model_type', modelType];
  const supported = families.flatMap((one) => one.architectures).join(', ');
  throw new LozaError(
    'ERR_LOZA_UNSUPPORTED',
    `config.json: ${key} ${show(value)} is not supported`,
    {
      value,
      hint: `Supported are ${supported}`,
    },
  );
}
