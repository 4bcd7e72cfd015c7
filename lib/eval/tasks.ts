import type { Needle } from './haystack';
import type { Random } from './random';
import { scoreAll, scoreLastNumber, type Score } from './score';
import { adjectives, nouns } from './words';

export type TaskName = 'passkey' | 'multikey' | 'multiquery' | 'alias' | 'lines' | 'variables';

/** One question about needles in a haystack. */
export interface Question {
  /** Stands before the text. */
  intro: string;
  needles: Needle[];
  /** The needles that the answer is in, as indices; the first is the one whose depth was asked for. */
  asked: number[];
  question: string;
  expected: string[];
}

/** What makes the questions of a task. */
export interface Task {
  description: string;
  /** Whether the depth of the asked needle is chosen, and reported, or random. */
  byDepth: boolean;
  /** No text between the needles: they are added until the prompt is as long as asked. */
  onlyNeedles: boolean;
  /** Room that the answer needs. */
  answerTokens: number;
  /** Makes a question; `lines` is how many needles there are where there is nothing else. */
  make(random: Random, depth: number, lines: number): Question;
  score(answer: string, expected: readonly string[]): Score;
}

/** Depths are whole thousandths, as DuoAttention has them. */
const randomDepth = (random: Random): number => random.below(1001) / 1000;

const passKeyIntro =
  'Pass keys are hidden in the following text. I will ask you about them afterwards.\n';
const magicIntro =
  'Some special magic numbers are hidden within the following text. Make sure to memorize it. I will quiz you about the numbers afterwards.\n';
const linesIntro =
  'Below is a record of lines I want you to remember. For each line, memorize its <REGISTER_CONTENT>. At the end of the record, I will ask you to retrieve the <REGISTER_CONTENT> of a certain line.\n';
const variablesIntro =
  'Memorize and track the chain(s) of variable assignment hidden in the following text.\n';

const usual = { byDepth: false, onlyNeedles: false, score: scoreAll } as const;

export const tasks: Record<TaskName, Task> = {
  passkey: {
    ...usual,
    description: 'one pass key of 5 digits at a depth',
    byDepth: true,
    answerTokens: 32,
    make: makePassKey,
  },
  multikey: {
    ...usual,
    description: "RULER's multi-key needles: 4 numbers of 7 digits, one is asked",
    answerTokens: 64,
    make: (random) => makeMagicNumbers(random, 1),
  },
  multiquery: {
    ...usual,
    description: "RULER's multi-query needles: 4 numbers of 7 digits, all are asked at once",
    answerTokens: 128,
    make: (random) => makeMagicNumbers(random, 4),
  },
  alias: {
    ...usual,
    description: 'two hops: a name leads to another name, which has the pass key',
    answerTokens: 32,
    make: makeAlias,
  },
  lines: {
    ...usual,
    description: "LongEval's lines: nothing but lines, each with a number",
    onlyNeedles: true,
    answerTokens: 64,
    make: makeLines,
    score: scoreLastNumber,
  },
  variables: {
    ...usual,
    description: "RULER's variable tracking: the 5 names of a value through 4 assignments",
    answerTokens: 64,
    make: makeVariables,
  },
};

function makePassKey(random: Random, depth: number): Question {
  const name = random.pick(nouns);
  const key = random.digits(5);
  return {
    intro: passKeyIntro,
    needles: [{ text: ` [${name}:${key}]`, depth }],
    asked: [0],
    question: `What is the pass key of ${name}?`,
    expected: [key],
  };
}

function makeMagicNumbers(random: Random, asked: number): Question {
  const names = random.sample(nouns, 4);
  const values = names.map(() => random.digits(7));
  const needles = names.map((name, i) => ({
    text: ` One of the special magic numbers for ${name} is: ${values[i]}.`,
    depth: randomDepth(random),
  }));
  const wanted = names.slice(0, asked);
  const question =
    asked === 1
      ? `What is the special magic number for ${wanted[0]} mentioned in the provided text?`
      : `What are all the special magic numbers for ${listOfNames(wanted)} mentioned in the provided text?`;
  return {
    intro: magicIntro,
    needles,
    asked: wanted.map((_, i) => i),
    question,
    expected: values.slice(0, asked),
  };
}

/** Four pass keys and four names that stand for them. */
function makeAlias(random: Random): Question {
  const names = random.sample(nouns, 8);
  const keys = names.slice(0, 4).map(() => random.digits(5));
  const needles = names.map((name, i) => ({
    text: i < 4 ? ` [${name}:${keys[i]}]` : ` [${name}=${names[i - 4]}]`,
    depth: randomDepth(random),
  }));
  return {
    intro: passKeyIntro,
    needles,
    asked: [4, 0],
    question: `What is the pass key behind ${names[4]}?`,
    expected: [keys[0] as string],
  };
}

function makeLines(random: Random, _depth: number, lines: number): Question {
  const count = Math.min(lines, adjectives.length * nouns.length);
  const all = Array.from({ length: adjectives.length * nouns.length }, (_, i) => i);
  const chosen = random.sample(all, count).map((i) => {
    const [adjective, noun] = [adjectives[Math.floor(i / nouns.length)], nouns[i % nouns.length]];
    return { name: `line ${adjective}-${noun}`, value: 1 + random.below(50_000) };
  });
  const needles = chosen.map(({ name, value }, i) => ({
    text: `\n${name}: REGISTER_CONTENT is <${value}>`,
    depth: i / Math.max(count - 1, 1),
  }));
  const asked = random.below(count);
  const { name, value } = chosen[asked] as { name: string; value: number };
  return {
    intro: linesIntro,
    needles,
    asked: [asked],
    question: `Tell me what is the <REGISTER_CONTENT> in ${name}? I need the number.`,
    expected: [String(value)],
  };
}

/** One chain: a value, and five names that get it one from the other, in this order in the text. */
function makeVariables(random: Random): Question {
  const names = new Set<string>();
  while (names.size < 5) {
    names.add(Array.from({ length: 5 }, () => String.fromCharCode(65 + random.below(26))).join(''));
  }
  const chain = [...names];
  const value = 10_000 + random.below(90_000);
  const depths = chain.map(() => randomDepth(random)).sort((a, b) => a - b);
  const needles = chain.map((name, i) => ({
    text: ` VAR ${name} = ${i === 0 ? value : `VAR ${chain[i - 1]}`}.`,
    depth: depths[i] as number,
  }));
  return {
    intro: variablesIntro,
    needles,
    asked: chain.map((_, i) => i),
    question: `Find all variables that are assigned the value ${value} in the text above.`,
    expected: chain,
  };
}

function listOfNames(names: readonly string[]): string {
  return `${names.slice(0, -1).join(', ')}, and ${names.at(-1)}`;
}
