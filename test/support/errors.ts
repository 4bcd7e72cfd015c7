import { LozaError, type LozaErrorCode } from '../../lib/errors';

/** Runs `action` and returns the LozaError that it must fail with. */
export async function lozaErrorOf(action: () => unknown): Promise<LozaError> {
  try {
    await action();
  } catch (error) {
    if (LozaError.isInstance(error)) return error;
    throw error;
  }
  throw new Error('expected a LozaError, but nothing was thrown');
}

/** Asserts that `action` fails with exactly this code and a message that matches. */
export async function expectLozaError(
  action: () => unknown,
  code: LozaErrorCode,
  message: RegExp | string,
): Promise<void> {
  const error = await lozaErrorOf(action);
  expect({ code: error.code, message: error.message }).toEqual({
    code,
    message:
      typeof message === 'string'
        ? expect.stringContaining(message)
        : expect.stringMatching(message),
  });
}
