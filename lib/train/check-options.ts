import { LozaError, show } from '../errors';

export function stringList(name: string, value: unknown): readonly string[] {
  const good = Array.isArray(value) && value.every((item) => typeof item === 'string');
  if (good) return value;
  throw invalid(name, 'an array of file names', value);
}

export function folder(value: unknown): string {
  if (typeof value === 'string' && value !== '') return value;
  throw invalid('out', 'the path of a folder', value);
}

/** The first choice is the default. */
export function choice<T extends string>(
  name: string,
  value: string | undefined,
  allowed: readonly [T, ...T[]],
): T {
  if (value === undefined) return allowed[0];
  const known = allowed.find((one) => one === value);
  if (known !== undefined) return known;
  throw invalid(name, `one of ${allowed.map(show).join(', ')}`, value);
}

export function whole(name: string, value: unknown, min: number, max: number): number {
  if (Number.isInteger(value) && Number(value) >= min && Number(value) <= max) return Number(value);
  throw invalid(name, `an integer of ${min}..${max}`, value);
}

export function real(name: string, value: unknown, min: number, max: number): number {
  if (typeof value === 'number' && value >= min && value <= max) return value;
  throw invalid(name, `a number of ${min}..${max}`, value);
}

export function invalid(name: string, expected: string, value: unknown): LozaError {
  const problem = `${name} must be ${expected}, got ${show(value)}`;
  return new LozaError('ERR_LOZA_INVALID_ARG', problem, { value });
}
