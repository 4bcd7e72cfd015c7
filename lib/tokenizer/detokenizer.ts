/** What streaming needs of a tokenizer. */
export interface TokenDecoder {
  decode(ids: ArrayLike<number>): string;
  isSpecial(id: number): boolean;
}

export interface DetokenizerOptions {
  /** Leave special tokens such as EOS out of the text (default true). */
  skipSpecialTokens?: boolean | undefined;
}

const replacement = '\uFFFD';

/**
 * Token ids to text, one at a time, without ever emitting half a character: all pieces joined are
 * exactly `decode` of all ids.
 *
 * A decoder is not linear (a character may span tokens, a first space may be dropped), so each token
 * is decoded together with a short *window* of tokens before it, and the text that the window gave
 * before is cut off. Where bytes are cut short, the decoded text ends in one U+FFFD, which the next
 * token may turn into a character: that one is held back. Any U+FFFD before it is final, and an
 * unfinished character has at most 3 bytes, so no more than 3 tokens with bytes are ever held.
 */
export class Detokenizer {
  readonly #skipSpecialTokens: boolean;
  #window: number[] = [];
  /** Where in the window the newest tokens begin; those before are context. */
  #newest = 0;
  /** The decoded window. */
  #text = '';
  /** How many UTF-16 units at the end of the decoded window are held back: 0 or 1. */
  #held = 0;

  constructor(
    private readonly tokenizer: TokenDecoder,
    options: DetokenizerOptions = {},
  ) {
    this.#skipSpecialTokens = options.skipSpecialTokens ?? true;
  }

  /** The text that token `id` completes; often a word, '' within a character. */
  push(id: number): string {
    if (this.#skipSpecialTokens && this.tokenizer.isSpecial(id)) return '';
    const before = this.#text;
    const after = this.tokenizer.decode([...this.#window, id]);
    if (after === before && before !== '' && this.tokenizer.decode([id]) === '') return '';
    const emitted = before.length - this.#held;
    this.#window.push(id);
    this.#text = after;
    this.#held = after.endsWith(replacement) ? 1 : 0;
    const piece = after.slice(emitted, after.length - this.#held);
    this.#forget(before);
    return piece;
  }

  /** What is still held back at the end of the sequence; afterwards a new sequence may begin. */
  flush(): string {
    const rest = this.#text.slice(this.#text.length - this.#held);
    this.#window = [];
    this.#newest = 0;
    this.#text = '';
    this.#held = 0;
    return rest;
  }

  /**
   * Drops tokens from the front of the window where the text cannot depend on them any more. That is
   * so at every *border* between whole characters: after a token that leaves nothing held, or before
   * one that only added to the text, as then it did not continue the bytes before it. The tokens
   * between the last two borders stay, as context.
   */
  #forget(before: string): void {
    const length = this.#window.length;
    const onlyAdded = this.#text.length > before.length && this.#text.startsWith(before);
    const border = this.#held === 0 ? length : onlyAdded ? length - 1 : 0;
    if (border <= this.#newest) return;
    if (this.#newest > 0) {
      this.#window.splice(0, this.#newest);
      this.#text = this.tokenizer.decode(this.#window);
    }
    this.#newest = border - this.#newest;
  }
}
