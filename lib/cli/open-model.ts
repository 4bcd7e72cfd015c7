import { LanguageModel } from '../language-model';
import type { LoadOptions } from '../load-options';
import type { Context } from './context';
import { startProgress } from './progress';

/** Loads a model, shows how far that is, and closes the model after `use`, whatever happens. */
export async function withModel<T>(
  dir: string,
  options: LoadOptions,
  context: Context,
  use: (model: LanguageModel) => Promise<T>,
): Promise<T> {
  const progress = startProgress(context, 'loading', 'bytes');
  let model: LanguageModel;
  try {
    model = await LanguageModel.load(dir, {
      ...options,
      signal: context.signal,
      onProgress: ({ loadedBytes, totalBytes }) => {
        if (totalBytes > 0) progress.update(loadedBytes, totalBytes);
      },
    });
  } finally {
    progress.stop();
  }
  try {
    return await use(model);
  } finally {
    await model.close();
  }
}
