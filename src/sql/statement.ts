/**
 * Tells what a statement text does to its session: the settings, pins, transactions and escapes in it. Three steps,
 * the cheap ones first: a scan without parser that recognises plain data statements, a cache by text, PostgreSQL's
 * own parser. It owns the order of these and their bounds, and knows nothing of sessions, modes or roles: whether
 * an escape is refused is the relay's decision.
 */
import { ClaimNames } from './claim-names.ts';
import {
  BEGIN_EFFECTS,
  dataEffects,
  EffectsBuilder,
  END_EFFECTS,
  NO_EFFECTS,
  OPAQUE_EFFECTS,
  type StatementEffects,
} from './effects.ts';
import { type ParseOutcome, Parser } from './parser.ts';
import { Glance, StatementScanner } from './scan.ts';
import { TextCache } from './text-cache.ts';
import { effectsOfTokenText, mayHoldToken, showsToken } from './token-statement.ts';
import { effectsOfTree } from './tree.ts';
import { mayChangeSettings, mayControlTransaction, mayEscape, mayPin, mayWiden } from './tripwires.ts';

export { NO_EFFECTS, type StatementEffects, type TokenStatement } from './effects.ts';

export interface StatementAnalyzerOptions {
  /** Texts kept with their effects; default 10,000. */
  readonly cacheEntriesMax?: number;
  /** Characters of all cached texts together; default 8 Mi. */
  readonly cacheCharsMax?: number;
  /** Longer texts are analysed each time; default 4,096 characters. */
  readonly cachedTextLengthMax?: number;
  /** Longer texts never reach the parser; default 262,144 characters. */
  readonly parsedTextLengthMax?: number;
  /** The settings that carry claims; default those that always do. */
  readonly claimNames?: ClaimNames;
}

/** One per worker. Every call is synchronous; a parse takes 20 to 70 µs for usual texts, a hit well below one. */
export class StatementAnalyzer {
  readonly #parser: Parser;
  readonly #scanner = new StatementScanner();
  readonly #cache: TextCache<StatementEffects>;
  readonly #cachedTextLengthMax: number;
  readonly #claimNames: ClaimNames;

  private constructor(parser: Parser, options: StatementAnalyzerOptions) {
    this.#parser = parser;
    this.#cachedTextLengthMax = options.cachedTextLengthMax ?? 4_096;
    this.#claimNames = options.claimNames ?? new ClaimNames();
    this.#cache = new TextCache(options.cacheEntriesMax ?? 10_000, options.cacheCharsMax ?? 8 * 1024 * 1024);
  }

  /** Loads the parser's WASM, about 20 ms. */
  static async load(options: StatementAnalyzerOptions = {}): Promise<StatementAnalyzer> {
    return new StatementAnalyzer(await Parser.load(options.parsedTextLengthMax ?? 262_144), options);
  }

  /** Cached texts, for a metric. */
  get cachedTexts(): number {
    return this.#cache.size;
  }

  /**
   * The effects of a Query string or of the text of a Parse, without its closing zero byte. Assumes
   * standard_conforming_strings on and an encoding in which ASCII bytes are ASCII; `escape` covers the settings
   * that would end either.
   */
  analyze(text: string): StatementEffects {
    const effects = this.#glance(text);
    if (effects !== null) return effects;
    if (mayHoldToken(text)) {
      const outcome = this.#parser.parse(text);
      return effectsOfTokenText(outcome, effectsOfOutcome(text, outcome, this.#claimNames));
    }
    const cacheable = text.length <= this.#cachedTextLengthMax;
    const known = cacheable ? this.#cache.get(text) : undefined;
    if (known !== undefined) return known;
    const outcome = this.#parser.parse(text);
    const found = effectsOfOutcome(text, outcome, this.#claimNames);
    // While the parser is being replaced its answer is only for now.
    if (cacheable && outcome.kind !== 'unavailable' && !showsToken(text)) this.#cache.set(text, found);
    return found;
  }

  /** The same by the parser alone, uncached: what `analyze` must never say less than. */
  analyzeByParser(text: string): StatementEffects {
    return effectsOfOutcome(text, this.#parser.parse(text), this.#claimNames);
  }

  #glance(text: string): StatementEffects | null {
    const scanner = this.#scanner;
    const glance = scanner.scan(text);
    switch (glance) {
      case Glance.Plain:
        return scanner.statements === 1 ? NO_EFFECTS : dataEffects(scanner.statements, false);
      case Glance.Opaque:
        return scanner.statements === 1 ? OPAQUE_EFFECTS : dataEffects(scanner.statements, true);
      case Glance.Begin:
        return BEGIN_EFFECTS;
      case Glance.End:
        return END_EFFECTS;
      case Glance.Ask:
        return null;
      default:
        return glance satisfies never;
    }
  }
}

function effectsOfOutcome(text: string, outcome: ParseOutcome, claims: ClaimNames): StatementEffects {
  if (outcome.kind === 'tree') return effectsOfTree(outcome.statements, claims);
  const effects = new EffectsBuilder();
  effects.unparsed = true;
  effects.opaque = true;
  if (claims.maybeIn(text)) effects.escape(uncheckedMessage(outcome));
  else if (mayEscape(text)) effects.escapeRole(uncheckedMessage(outcome));
  if (mayWiden(text)) effects.widen(uncheckedMessage(outcome));
  const settings = mayChangeSettings(text);
  effects.unknownSettings = settings;
  effects.touchesLocalSettings = settings;
  effects.hasTransactionControl = mayControlTransaction(text);
  effects.copiesIn = true;
  if (mayPin(text)) effects.pin('unparsed statement');
  return effects.finish(1);
}

/** A server of another version may understand what this parser does not, hence a refusal and not a shrug. */
function uncheckedMessage(outcome: ParseOutcome): string {
  switch (outcome.kind) {
    case 'syntax':
      return `statement cannot be checked: ${outcome.message.slice(0, 200)}`;
    case 'large':
      return 'statement is too large to be checked';
    case 'complex':
      return 'statement is too complex to be checked';
    default:
      return 'statement cannot be checked at this moment';
  }
}
