/** Token ids of a text. */
export type Encode = (text: string) => Promise<Int32Array>;

interface Piece {
  text: string;
  ids: Int32Array;
  /** Whether the ids of both together are the ids of each, by the piece that comes next. */
  seams: Map<Piece, boolean>;
}

/** Pieces that are longer are not worth to be kept: they will hardly come again. */
const longestPiece = 4096;
const mostPieces = 100_000;

/**
 * Encodes texts that are put together from the same pieces again and again, such as the sentences of
 * a haystack, by putting together their ids. The ids are those of the whole text: two pieces are only
 * encoded apart where that was seen to give the ids of both together, and are one piece elsewhere. A
 * tokenizer goes through a text from left to right, so where each piece has a seam to the next there
 * is no token across any.
 */
export class PieceEncoder {
  private readonly pieces = new Map<string, Piece>();

  constructor(private readonly encodeText: Encode) {}

  async encode(texts: readonly string[]): Promise<Int32Array> {
    const parts = texts.length > 1 ? await this.split(texts) : undefined;
    if (parts === undefined) return this.encodeText(texts.join(''));
    const ids = new Int32Array(parts.reduce((sum, part) => sum + part.ids.length, 0));
    let at = 0;
    for (const part of parts) {
      ids.set(part.ids, at);
      at += part.ids.length;
    }
    return ids;
  }

  async count(texts: readonly string[]): Promise<number> {
    const parts = texts.length > 1 ? await this.split(texts) : undefined;
    if (parts === undefined) return (await this.encodeText(texts.join(''))).length;
    return parts.reduce((sum, part) => sum + part.ids.length, 0);
  }

  /** Pieces with a seam between each two; undefined where there are too few seams. */
  private async split(texts: readonly string[]): Promise<Piece[] | undefined> {
    const parts: Piece[] = [];
    for (const text of texts) {
      if (text === '') continue;
      let piece = this.pieces.get(text) ?? (await this.add(text));
      for (let before = parts.at(-1); before !== undefined; before = parts.at(-1)) {
        if (before.seams.get(piece) ?? (await this.join(before, piece))) break;
        const both = before.text + piece.text;
        if (both.length > longestPiece) return undefined;
        piece = this.pieces.get(both) ?? (await this.add(both));
        parts.pop();
      }
      parts.push(piece);
    }
    return parts;
  }

  private async add(text: string): Promise<Piece> {
    const piece = { text, ids: await this.encodeText(text), seams: new Map<Piece, boolean>() };
    if (this.pieces.size >= mostPieces) this.pieces.clear();
    if (text.length <= longestPiece) this.pieces.set(text, piece);
    return piece;
  }

  /** Whether there is a seam between two pieces. */
  private async join(before: Piece, after: Piece): Promise<boolean> {
    const both = await this.encodeText(before.text + after.text);
    const { length } = before.ids;
    const same =
      both.length === length + after.ids.length &&
      both.every((id, i) => id === (i < length ? before.ids[i] : after.ids[i - length]));
    before.seams.set(after, same);
    return same;
  }
}
