/**
 * What of a verified token policies can read: the settings that carry its claims, as requests ready to be sent. The
 * values belong to the identity and are kept apart from the settings of a client; every setting here is overwritten,
 * with an empty string where the token has no such claim. It knows no socket and sends nothing.
 */
import { createHash, createHmac, hash } from 'node:crypto';
import { claimAt } from '../auth/claim-path.ts';
import type { TokenFacts } from '../auth/identity.ts';
import { Lru } from '../base/lru.ts';
import type { Secret } from '../base/secret.ts';
import type { Config } from '../config/config.ts';
import { encodeBind, encodeClose, encodeExecute, encodeParse } from '../protocol/message-writer.ts';
import { settingName } from '../sql/settings.ts';
import { SERVER_NAME_PREFIX } from './prepared-statements.ts';

/** The signature over the claims, for turnstile.claims() in the database. */
export const MAC_SETTING = 'turnstile.mac';
/** Who acts, and for whom, in a session of a delegated token (RFC 8693 section 4.1). */
const ACTOR_SETTING = 'request.jwt.actor';
const SUBJECT_SETTING = 'request.jwt.subject';
/** The name of the whole payload that PostgREST's and Supabase's functions look for … */
const USUAL_CLAIMS_SETTING = 'request.jwt.claims';
/** … behind these older ones, which must therefore say nothing else. */
const OLDER_SETTINGS: readonly string[] = ['sub', 'role', 'email'].map((name) => `request.jwt.claim.${name}`);

const BYTEA_OID = 17;
/** FUNC_MAX_ARGS in pg_config_manual.h. */
const ARGUMENTS_MAX = 100;
const EXECUTE = encodeExecute('');
/** Of a bytea in text format: an empty one. */
const EMPTY = '\\x';
/** Where the digits of a signature come, in hex once more. */
const NO_MAC = '30'.repeat(64);
const KNOWN_MAX = 2_000;

type ConfigPart = Pick<Config, 'claimSettings'> & {
  readonly turnstile: Pick<Config['turnstile'], 'claimsSetting' | 'claimsMacKey' | 'claimsMacKeyId'>;
};

/** What a signature is bound to, so that a copy is of no use on another server connection. */
export interface SignedConnection {
  readonly processId: number;
  /** pg_stat_activity.backend_start in microseconds since the epoch, as digits; null where nobody asked. */
  readonly backendStart: string | null;
}

/** The names, and the one statement that sets them all: the same for every token of a configuration. */
export class ClaimForm {
  readonly names: readonly string[];
  /** The prepared statement of ours that sets them. */
  readonly statementName: string;
  readonly parse: Buffer;
  /** Drops it; nothing happens when it is not there. */
  readonly close: Buffer;
  /** `parse` without a name, where nobody knows whether the named one is still there. */
  readonly parseUnnamed: Buffer;
  /** Bind and Execute of the named statement with nothing in every setting. */
  readonly clear: Buffer;
  readonly macKeyId: string;
  readonly macKey: Secret | null;

  /** `names` in lower case; the last one is `turnstile.mac` when there is a key. */
  constructor(names: readonly string[], macKey: Secret | null, macKeyId: string) {
    this.names = names;
    this.macKey = macKey;
    this.macKeyId = macKeyId;
    const sql = setSql(names);
    // Two configurations must not take one name for different statements.
    const digest = createHash('sha256').update(sql).digest('hex').slice(0, 12);
    this.statementName = `${SERVER_NAME_PREFIX}claims_${digest}`;
    const types = names.map(() => BYTEA_OID);
    this.parse = encodeParse(this.statementName, sql, types);
    this.close = encodeClose('S', this.statementName);
    this.parseUnnamed = encodeParse('', sql, types);
    const nothing = names.map(() => EMPTY);
    this.clear = bindAndExecute(this.statementName, nothing);
  }
}

/**
 * The values of one token. Immutable; compared by identity: sessions with the same object need nothing sent between
 * them. Values travel as bytea, so that no client_encoding reads them as something else.
 */
export class ClaimSettings {
  readonly form: ClaimForm;
  readonly #named: Buffer;
  readonly #unnamed: Buffer;
  readonly #payload: string;

  /** `values` for the names of the form, without the signature; `payload` is what it signs. */
  constructor(form: ClaimForm, values: readonly string[], payload: string) {
    const { macKey, macKeyId, statementName } = form;
    const texts = values.map((value) => EMPTY + hexOf(value));
    if (macKey !== null) texts.push(EMPTY + hexOf(`${macKeyId}.`) + NO_MAC);
    this.form = form;
    this.#payload = payload;
    this.#named = bindAndExecute(statementName, texts);
    this.#unnamed = bindAndExecute('', texts);
  }

  /** Bind and Execute that put the values in force on a connection. Not to be written to. */
  request(connection: SignedConnection, named: boolean): Buffer {
    const request = named ? this.#named : this.#unnamed;
    const { macKey } = this.form;
    if (macKey === null) return request;
    // The signature is the last value and always as long, so that only its digits differ.
    const signed = Buffer.from(request);
    const at = signed.lastIndexOf(NO_MAC, undefined, 'latin1');
    signed.write(hexOf(claimsMac(macKey, connection, this.#payload)), at, 'latin1');
    return signed;
  }
}

/** Hands out one object per set of values, so that all sessions of one token have the same. */
export class ClaimSettingSets {
  readonly #config: ConfigPart;
  readonly #form: ClaimForm | null;
  readonly #known = new Lru<string, ClaimSettings>(KNOWN_MAX);
  /** All logins with a remembered signature have the same facts. */
  readonly #ofFacts = new WeakMap<TokenFacts, ClaimSettings>();

  constructor(config: ConfigPart) {
    this.#config = config;
    this.#form = claimForm(config);
  }

  /** Null when no claim is to reach PostgreSQL. */
  of(token: TokenFacts): ClaimSettings | null {
    const form = this.#form;
    if (form === null) return null;
    let settings = this.#ofFacts.get(token);
    if (settings === undefined) {
      settings = this.#make(token, form);
      this.#ofFacts.set(token, settings);
    }
    return settings;
  }

  #make(token: TokenFacts, form: ClaimForm): ClaimSettings {
    const payload = asciiJson(token.payload);
    const values = form.names.filter((name) => name !== MAC_SETTING || form.macKey === null);
    const settings = values.map((name) => settingValue(this.#config, name, token, payload));
    const key = hash('sha256', JSON.stringify([payload, ...settings]), 'base64');
    const known = this.#known.get(key);
    if (known !== undefined) return known;
    const made = new ClaimSettings(form, settings, payload);
    this.#known.set(key, made);
    return made;
  }
}

/** The claims of one token by themselves; sessions that are to share them go through `ClaimSettingSets`. */
export function claimSettingsOf(token: TokenFacts, config: ConfigPart): ClaimSettings | null {
  return new ClaimSettingSets(config).of(token);
}

/** Every setting that carries claims, in lower case; empty when none is to. */
export function claimSettingNames(config: ConfigPart): string[] {
  const names = new Set<string>();
  const { claimsSetting, claimsMacKey } = config.turnstile;
  const whole = claimsSetting === 'none' ? null : settingName(claimsSetting);
  if (whole !== null) names.add(whole);
  for (const { setting } of config.claimSettings) names.add(settingName(setting));
  if (names.size === 0) return [];
  if (whole === USUAL_CLAIMS_SETTING) for (const name of OLDER_SETTINGS) names.add(name);
  names.add(ACTOR_SETTING).add(SUBJECT_SETTING);
  names.delete(MAC_SETTING);
  if (claimsMacKey !== null && whole !== null) names.add(MAC_SETTING);
  return [...names];
}

/** Lower-case hex of HMAC-SHA256 over `pid:backend_start|claims`: what turnstile.claims() computes again. */
export function claimsMac(key: Secret, connection: SignedConnection, payload: string): string {
  return createHmac('sha256', key.reveal())
    .update(`${connection.processId}:${connection.backendStart ?? ''}|${payload}`)
    .digest('hex');
}

function claimForm(config: ConfigPart): ClaimForm | null {
  const names = claimSettingNames(config);
  if (names.length === 0) return null;
  const signed = names.at(-1) === MAC_SETTING;
  return new ClaimForm(names, signed ? config.turnstile.claimsMacKey : null, config.turnstile.claimsMacKeyId);
}

/** num_nulls takes the values of set_config without giving them back to us. */
function setSql(names: readonly string[]): string {
  const calls = names.map(
    (name, index) =>
      `pg_catalog.set_config('${name.replaceAll("'", "''")}', pg_catalog.convert_from($${index + 1}, 'UTF8'), false)`,
  );
  const columns: string[] = [];
  for (let at = 0; at < calls.length; at += ARGUMENTS_MAX) {
    columns.push(`pg_catalog.num_nulls(${calls.slice(at, at + ARGUMENTS_MAX).join(', ')})`);
  }
  return `SELECT ${columns.join(', ')}`;
}

function hexOf(text: string): string {
  return Buffer.from(text).toString('hex');
}

function bindAndExecute(statement: string, values: readonly string[]): Buffer {
  return Buffer.concat([encodeBind('', statement, values), EXECUTE]);
}

/** A configured row beats what the setting would carry by itself. */
function settingValue(config: ConfigPart, name: string, token: TokenFacts, payload: string): string {
  const row = config.claimSettings.find(({ setting }) => settingName(setting) === name);
  if (row !== undefined) return scalarText(claimAt(token.claims, row.claim));
  if (name === settingName(config.turnstile.claimsSetting)) return payload;
  if (token.actor !== null && name === ACTOR_SETTING) return scalarText(token.actor);
  if (token.actor !== null && name === SUBJECT_SETTING) return scalarText(token.subject);
  return '';
}

/** Strings, integers and booleans. Nothing that PostgreSQL could not hold or that was rounded when it was read. */
function scalarText(claim: unknown): string {
  if (typeof claim === 'string') return UNHOLDABLE.test(claim) ? '' : claim;
  if (typeof claim === 'number') return Number.isSafeInteger(claim) ? String(claim) : '';
  return typeof claim === 'boolean' ? String(claim) : '';
}

/** The same JSON in ASCII, which every encoding of a database can hold. */
function asciiJson(json: string): string {
  return json.replace(NOT_ASCII, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`);
}

/** NUL, or half of a surrogate pair. */
const UNHOLDABLE = /\0|\p{Surrogate}/u;
const NOT_ASCII = /[^\0-\x7f]/g;
