import { LozaError } from '../errors';
import type { Random } from './random';

/** Tokens of a text that is made of these parts. */
export type CountTokens = (parts: readonly string[]) => Promise<number>;

interface Sentence {
  /** With the space or the line that goes before it. */
  text: string;
  tokens: number;
}

/** A record to hide, and where: 0 puts it before the text, 1 behind it. */
export interface Needle {
  text: string;
  depth: number;
}

/** With its length, so that the places of later ones are known. */
export interface MeasuredNeedle extends Needle {
  tokens: number;
}

/** A text with needles in it. */
export interface Hidden {
  /** Sentences and needles, one behind the other. */
  parts: string[];
  /** Of its sentences, without the needles. */
  tokens: number;
  /** Tokens before each needle, about, in the order given. */
  places: number[];
}

/** Sentences, shorter ones are joined to the next. */
const minSentence = 20;

/** A long text, cut into sentences, from which haystacks of any length are made. */
export class Haystack {
  private constructor(private readonly sentences: readonly Sentence[]) {}

  static async create(text: string, count: CountTokens): Promise<Haystack> {
    const parts = splitSentences(text);
    if (parts.length === 0) {
      throw new LozaError('ERR_LOZA_INVALID_ARG', 'The haystack has no text', { value: text });
    }
    const sentences: Sentence[] = [];
    for (const part of parts) sentences.push({ text: part, tokens: await count([part]) });
    return new Haystack(sentences);
  }

  /**
   * About `tokens` tokens of text in its own order from a random sentence on, from the beginning again
   * behind the end, with needles between sentences. Needles of equal depth keep their order.
   */
  hide(needles: readonly MeasuredNeedle[], tokens: number, random: Random): Hidden {
    const chosen = this.cut(tokens, random.below(this.sentences.length));
    const total = chosen.reduce((sum, { tokens: own }) => sum + own, 0);
    const order = needles.map((_, i) => i).sort((a, b) => depthOf(a) - depthOf(b) || a - b);
    const places = needles.map(() => 0);
    const parts: string[] = [];
    let read = 0;
    let hidden = 0;
    let next = 0;
    const place = (until: number) => {
      for (; next < order.length && depthOf(order[next] as number) * total <= until; next++) {
        const needle = needles[order[next] as number] as MeasuredNeedle;
        parts.push(needle.text);
        places[order[next] as number] = read + hidden;
        hidden += needle.tokens;
      }
    };
    for (const sentence of chosen) {
      // A needle goes to the nearest end of a sentence.
      place(read + sentence.tokens / 2);
      parts.push(sentence.text);
      read += sentence.tokens;
    }
    place(Infinity);
    return { parts, tokens: total, places };

    function depthOf(index: number): number {
      return (needles[index] as Needle).depth;
    }
  }

  private cut(tokens: number, start: number): Sentence[] {
    const chosen: Sentence[] = [];
    let total = 0;
    for (let i = start; total < tokens; i++) {
      const sentence = this.sentences[i % this.sentences.length] as Sentence;
      if (total + sentence.tokens > tokens) break;
      chosen.push(sentence);
      total += sentence.tokens;
    }
    return chosen;
  }
}

/** Each sentence starts with the white space before it, so that joining them gives the text again. */
export function splitSentences(text: string): string[] {
  const clean = text
    .replace(/\r\n?/g, '\n')
    .replace(/[^\S\n]+/g, ' ')
    .trim();
  const pieces = ` ${clean}`.match(/\s*\S[^]*?(?:[.?!]["')\]]*(?=\s|$)|$)/g) ?? [];
  const sentences: string[] = [];
  let open = '';
  for (const piece of pieces) {
    open += piece;
    if (open.length < minSentence) continue;
    sentences.push(open);
    open = '';
  }
  if (open.trim() !== '') sentences.push(open);
  return clean === '' ? [] : sentences;
}
