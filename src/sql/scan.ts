/**
 * The first look at a statement, without the parser: is it data only (SELECT, INSERT, UPDATE, DELETE, …) with no
 * word in it that could touch the session? It may send a harmless text to the parser, never the other way round.
 * It owns that promise and no effect beyond "plain" and "calls something unknown".
 */
import { Lexer, TokenKind } from './lexer.ts';
import { flagsAt, isTempSchemaAt, WordFlag } from './words.ts';

/** What the first look says. `Ask` means that only the parser can tell. */
export const Glance = { Plain: 0, Opaque: 1, Begin: 2, End: 3, Ask: 4 } as const;
export type Glance = (typeof Glance)[keyof typeof Glance];

const PAREN_OPEN = 0x28;
const DOT = 0x2e;
const SEMICOLON = 0x3b;

/** What the token in front was, as far as a parenthesis behind it matters. */
const Before = {
  Other: 0,
  /** A name that would be an unknown function if a parenthesis followed. */
  Unknown: 1,
  Into: 2,
  /** The table behind INTO, or a new name behind AS: a parenthesis opens its columns. */
  Target: 3,
  TargetDot: 4,
  /** `schema.` of some schema that is not pg_catalog. */
  Qualified: 5,
  Catalog: 6,
  CatalogDot: 7,
  As: 8,
} as const;
type Before = (typeof Before)[keyof typeof Before];

/** One reusable scanner. `statements` is valid after `Plain` and `Opaque`. */
export class StatementScanner {
  /** How many statements the last text held. */
  statements = 0;
  readonly #lexer = new Lexer();
  #opaque = false;

  scan(text: string): Glance {
    this.statements = 0;
    this.#opaque = false;
    const lexer = this.#lexer;
    lexer.reset(text);
    let atStart = true;
    let before: Before = Before.Other;
    for (;;) {
      const kind = lexer.next();
      if (kind === TokenKind.End) return this.#opaque ? Glance.Opaque : Glance.Plain;
      if (kind === TokenKind.Doubtful) return Glance.Ask;
      if (atStart) {
        if (lexer.sign === SEMICOLON || lexer.sign === PAREN_OPEN) continue;
        if (kind !== TokenKind.Word) return Glance.Ask;
        const flags = flagsAt(text, lexer.start, lexer.end);
        if ((flags & WordFlag.Data) === 0) return this.#transactionWord(flags);
        this.statements++;
        atStart = false;
        before = Before.Other;
        continue;
      }
      if (kind === TokenKind.Sign) {
        if (lexer.sign === SEMICOLON) atStart = true;
        before = this.#sign(lexer.sign, before);
        continue;
      }
      if (kind !== TokenKind.Word && kind !== TokenKind.QuotedName) {
        before = Before.Other;
        continue;
      }
      const flags = flagsAt(text, lexer.start, lexer.end);
      if ((flags & WordFlag.Suspect) !== 0 || isTempSchemaAt(text, lexer.start, lexer.end)) return Glance.Ask;
      before = this.#name(flags, before, kind === TokenKind.QuotedName);
    }
  }

  #sign(sign: number, before: Before): Before {
    if (sign === DOT) {
      if (before === Before.Target) return Before.TargetDot;
      return before === Before.Catalog ? Before.CatalogDot : Before.Qualified;
    }
    if (sign === PAREN_OPEN && (before === Before.Unknown || before === Before.Catalog)) this.#opaque = true;
    return Before.Other;
  }

  /** A quoted name is compared as it stands by PostgreSQL, so the table of harmless words does not speak for it. */
  #name(flags: number, before: Before, quoted: boolean): Before {
    switch (before) {
      case Before.Into:
      case Before.TargetDot:
      case Before.As:
        if (before === Before.As && !quoted && (flags & WordFlag.Harmless) !== 0) return Before.Other;
        return Before.Target;
      case Before.Qualified:
        return Before.Unknown;
      default:
        break;
    }
    if (quoted) return Before.Unknown;
    if ((flags & WordFlag.Into) !== 0) return Before.Into;
    if ((flags & WordFlag.As) !== 0) return Before.As;
    if ((flags & WordFlag.Catalog) !== 0) return Before.Catalog;
    return (flags & WordFlag.Harmless) !== 0 ? Before.Other : Before.Unknown;
  }

  /** BEGIN, COMMIT, END, ROLLBACK and ABORT are told apart here when nothing but semicolons surrounds them. */
  #transactionWord(flags: number): Glance {
    if (this.statements > 0 || (flags & (WordFlag.Begin | WordFlag.End)) === 0) return Glance.Ask;
    for (;;) {
      const kind = this.#lexer.next();
      if (kind === TokenKind.End) return (flags & WordFlag.Begin) !== 0 ? Glance.Begin : Glance.End;
      if (this.#lexer.sign !== SEMICOLON) return Glance.Ask;
    }
  }
}
