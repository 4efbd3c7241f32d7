/**
 * What the parts of one client's relay have in common: what it was made with, the frame loop they hand bytes back
 * to, and the state they share. Each part takes what it needs from here when it is made.
 */
import type { Clock } from '../base/clock.ts';
import type { Wire } from '../net/wire.ts';
import type { ServerOwner } from '../server/server-owner.ts';
import type { ClaimSettings } from '../session/claim-settings.ts';
import type { ParameterSet, ParameterSets } from '../session/parameters.ts';
import type { StatementRegistry } from '../session/prepared-statements.ts';
import { StatementNames } from '../session/statement-names.ts';
import type { StatementAnalyzer } from '../sql/statement.ts';
import { EffectsByName } from './effects-by-name.ts';
import { Reassertion } from './reassert.ts';
import type { RelayHost } from './relay.ts';
import { RequestRecord } from './request-record.ts';
import { SessionEffects } from './session-effects.ts';
import { StandIns } from './stand-ins.ts';
import { StatementSender } from './statement-sender.ts';
import { TokenStatements } from './token-statements.ts';
import { UnnamedStatement } from './unnamed-statement.ts';

export interface RelayOptions {
  readonly wire: Wire;
  readonly host: RelayHost;
  readonly clock: Clock;
  readonly analyzer: StatementAnalyzer;
  readonly registry: StatementRegistry;
  readonly parameterSets: ParameterSets;
  readonly parameters: ParameterSet;
  /** Named statements are mapped: transaction mode and prepared_statements is not `disabled`. */
  readonly mapNamed: boolean;
  /** The unnamed statement is mapped too: `extended_anonymous`. */
  readonly mapUnnamed: boolean;
  /** The role that escapes are refused for and that DISCARD ALL must not drop; null where the login is the role. */
  readonly guardedRole: string | null;
  /** It entered with a token: settings that carry claims are not its own. */
  readonly guardsClaims: boolean;
  /** It may not write: what would let it is refused. */
  readonly readOnly: boolean;
  /** The claims that its statements run with; null when none are to reach PostgreSQL. */
  readonly claims: ClaimSettings | null;
  /** Statements that PostgreSQL has prepared for this role before. */
  readonly provenStatements: WeakSet<object>;
}

/** The frame loop, as those see it who handle its messages. It owns what they send. */
export interface FrameLoop extends ServerOwner {
  /** The client's settings now. */
  readonly parameters: ParameterSet;
  /** The claims of its token now. */
  readonly claims: ClaimSettings | null;
  /** Nothing more is taken from the client, nor given to it. */
  readonly closed: boolean;
  requestCount: number;
  /** The next `byteCount` bytes from where the handler ends go to the server as they are. */
  passOn(byteCount: number): void;
  /** The next `byteCount` bytes from where the handler ends go nowhere. */
  drop(byteCount: number): void;
  /** Nothing is sent until what is under way is answered. */
  holdBack(): void;
  /** Nothing is taken from the client until `unpark`: the message at hand comes again. */
  park(): void;
  unpark(): void;
  /** The client broke the protocol: the session ends. */
  violate(message: string): void;
}

/** Made once for each client. */
export interface RelayParts {
  readonly loop: FrameLoop;
  readonly options: RelayOptions;
  readonly effects: SessionEffects;
  readonly names: StatementNames;
  readonly unnamed: UnnamedStatement;
  /** Of named statements that are not mapped. */
  readonly unmapped: EffectsByName;
  readonly sender: StatementSender;
  readonly standIns: StandIns;
  readonly record: RequestRecord;
  readonly reassertion: Reassertion;
  readonly tokens: TokenStatements;
}

export function makeRelayParts(loop: FrameLoop, options: RelayOptions): RelayParts {
  const names = new StatementNames();
  const record = new RequestRecord();
  return {
    loop,
    options,
    effects: new SessionEffects(),
    names,
    unnamed: new UnnamedStatement(names),
    unmapped: new EffectsByName(),
    sender: new StatementSender(loop, names, options.provenStatements),
    standIns: new StandIns(loop, names, options.mapNamed),
    record,
    reassertion: new Reassertion(loop, options.guardedRole, options.parameters),
    tokens: new TokenStatements(loop, options.host, record),
  };
}
