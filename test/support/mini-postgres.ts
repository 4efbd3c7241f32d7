/**
 * A small PostgreSQL for tests: it speaks the protocol as a backend does (implicit transactions, skipping to Sync,
 * prepared statements and portals, settings with rollback, COPY with swallowed Syncs, cancel) over a handful of
 * commands instead of SQL. Whatever a correct server would refuse, it refuses, so that a pooler that mixes up
 * names, transactions or owners is caught by the server itself.
 */
import {
  encodeDataRow,
  encodeParameterStatus,
  encodeReadyForQuery,
} from '../../src/protocol/message-writer.ts';
import { frame } from './scripted-client.ts';
import { type Frame, type Script, type ScriptedPeer, ScriptedServer } from './scripted-server.ts';

/** Settings that are reported, with their values before anybody sets them. */
const REPORTED: Record<string, string> = {
  application_name: '',
  DateStyle: 'ISO, MDY',
  TimeZone: 'UTC',
};
const UNREPORTED: Record<string, string> = { statement_timeout: '0', work_mem: '4MB' };

export interface MiniOptions {
  /** Runs before the login; may answer by itself and throw or return false to end the connection. */
  beforeLogin?: (peer: ScriptedPeer, index: number) => Promise<boolean>;
  /** How long the socket of a cancel request stays open after the signal; default 0. */
  cancelCloseDelayMs?: number;
  /** The role that every login takes with SET ROLE; default none. */
  role?: string;
  /** There is no such role. */
  roleMissing?: boolean;
  /** Awaited before each statement of pgturnstile's own. */
  beforeOwn?: () => Promise<void>;
  /** Answers are written in pieces of this size; default in one. */
  pieceBytes?: number;
}

export interface CancelSeen {
  readonly processId: number;
  /** True when a statement was running. */
  readonly hit: boolean;
}

class Interrupt extends Error {}

/** One backend. `frames` is what it got after its login, `chunks` the same as it came from the socket. */
export class MiniBackend {
  readonly processId: number;
  readonly peer: ScriptedPeer;
  readonly frames: Frame[] = [];
  readonly chunks: Buffer[] = [];
  /** Texts of Query messages and of executed portals, pgturnstile's own SELECTs left out. */
  readonly texts: string[] = [];
  /** The roles that were taken behind the login, in order. */
  readonly roles: string[] = [];
  readonly settings: Map<string, string> = new Map();
  readonly statements: Map<string, string> = new Map();
  startup: Record<string, string> = {};
  /** 'I', 'T' or 'E'. */
  status = 'I';
  closed = false;
  /** Inside an implicit transaction of the extended protocol. */
  implicit = false;
  readonly #portals = new Map<string, { text: string; values: (string | null)[] }>();
  readonly #owner: MiniPostgres;
  readonly #stale = new Set<string>();
  #defaults = new Map<string, string>();
  #before: Map<string, string> | null = null;
  #reported = new Map<string, string>();
  #skipping = false;
  #out: Buffer[] = [];
  #cancel: (() => void) | null = null;

  constructor(peer: ScriptedPeer, processId: number, owner: MiniPostgres) {
    this.peer = peer;
    this.processId = processId;
    this.#owner = owner;
  }

  get secretKey(): Buffer {
    const key = Buffer.alloc(4);
    key.writeInt32BE(this.processId * 7919);
    return key;
  }

  async run(): Promise<void> {
    this.peer.socket.once('close', () => {
      this.closed = true;
      this.#cancel?.();
    });
    this.startup = await this.peer.readStartup().catch(() => ({}));
    if (this.startup['user'] === undefined) return;
    for (const [name, value] of Object.entries({ ...REPORTED, ...UNREPORTED }))
      this.settings.set(name, value);
    this.settings.set('application_name', this.startup['application_name'] ?? '');
    this.#defaults = new Map(this.settings);
    for (const name of Object.keys(REPORTED)) this.#reported.set(name, this.settings.get(name)!);
    const user = this.startup['user']!;
    this.peer.sendLoggedIn({
      parameters: Object.fromEntries(this.#reported),
      processId: this.processId,
      secretKey: this.secretKey,
    });
    const wanted = this.#owner.options.role ?? user;
    const request = await this.peer.readRequest().catch(() => []);
    const takesRole = request.some(({ type, body }) => type === 'B' && body.includes(wanted));
    const role = takesRole ? wanted : user;
    if (takesRole && this.#owner.options.roleMissing === true) {
      const message = `role "${wanted}" does not exist`;
      this.peer.send(errorFrame('E', { S: 'ERROR', V: 'ERROR', C: '22023', M: message }));
      this.peer.send(encodeReadyForQuery(0x49));
      return;
    }
    this.peer.unread(Buffer.concat(request.map(({ type, body }) => frame(type, body))));
    const rows = role === user ? [{ name: user }] : [{ name: user }, { name: role }];
    if ((await this.peer.answerIdentity(user, role, rows).catch(() => null)) === null) return;
    this.peer.socket.on('data', (chunk: Buffer) => this.chunks.push(Buffer.from(chunk)));
    for (;;) {
      const message = await this.peer.readFrame().catch(() => null);
      if (message === null || message.type === 'X') return;
      this.frames.push(message);
      try {
        if (await this.#handle(message)) return;
      } catch (error) {
        if (!(error instanceof Interrupt)) throw error;
        return;
      }
      await this.#flush();
    }
  }

  /** A cancel request came; true when something was running. */
  cancel(): boolean {
    const cancel = this.#cancel;
    cancel?.();
    return cancel !== null;
  }

  /** Sends bytes of the test's own at this moment. */
  inject(...parts: Buffer[]): void {
    this.peer.send(...parts);
  }

  /** Makes the next Bind of every statement prepared with this text fail as a stale plan does. */
  makeStale(text: string): void {
    for (const [name, known] of this.statements) if (known === text) this.#stale.add(name);
  }

  // ---- messages ----

  async #handle(message: Frame): Promise<boolean> {
    const { type, body } = message;
    if (this.#skipping && type !== 'S') return false;
    const words = body.toString('latin1').split('\0');
    try {
      switch (type) {
        case 'Q': {
          const text = words[0]!;
          this.statements.delete('');
          const closed = await this.#runText(text, null);
          if (!closed) this.#ready();
          return closed;
        }
        case 'P':
          return this.#parse(words[0]!, words[1]!);
        case 'B':
          return this.#bind(body);
        case 'D':
          return this.#describe(words[0]!);
        case 'E':
          return await this.#execute(words[0]!);
        case 'C':
          if (words[0]![0] === 'S') this.statements.delete(words[0]!.slice(1));
          else this.#portals.delete(words[0]!.slice(1));
          this.#out.push(frame('3'));
          return false;
        case 'S':
          this.#skipping = false;
          if (this.implicit) this.#end(true);
          this.#ready();
          return false;
        case 'H':
        case 'd':
        case 'c':
        case 'f':
          return false;
        default:
          this.#error('08P01', `invalid frontend message type ${type}`, { S: 'FATAL', V: 'FATAL' });
          await this.#flush();
          return true;
      }
    } catch (thrown) {
      const error = thrown instanceof RangeError ? new MiniError('08P01', 'invalid message format') : thrown;
      if (!(error instanceof MiniError)) throw error;
      this.#error(error.code, error.message, error.fields);
      if (this.status === 'T') this.status = 'E';
      else if (this.implicit) this.#end(false);
      if (type === 'Q') this.#ready();
      else this.#skipping = true;
      return false;
    }
  }

  #parse(name: string, text: string): boolean {
    this.implicit ||= this.status === 'I';
    if (name === '') this.statements.delete('');
    if (/^(bad|refused)/i.test(text)) throw new MiniError('42601', `syntax error at "${text}"`);
    this.#checkFailed(text);
    if (name !== '' && this.statements.has(name)) {
      throw new MiniError('42P05', `prepared statement "${name}" already exists`);
    }
    this.statements.set(name, text);
    this.#stale.delete(name);
    this.#out.push(frame('1'));
    return false;
  }

  #bind(body: Buffer): boolean {
    this.implicit ||= this.status === 'I';
    const portalEnd = body.indexOf(0);
    const nameEnd = body.indexOf(0, portalEnd + 1);
    const name = body.toString('latin1', portalEnd + 1, nameEnd);
    const text = this.statements.get(name);
    if (text === undefined) {
      throw new MiniError('26000', `prepared statement "${name}" does not exist`);
    }
    this.#checkFailed(text);
    if (this.#stale.has(name)) {
      throw new MiniError('0A000', 'cached plan must not change result type', { R: 'RevalidateCachedQuery' });
    }
    const values: (string | null)[] = [];
    let at = nameEnd + 1;
    at += 2 + 2 * body.readUInt16BE(at);
    const count = body.readUInt16BE(at);
    at += 2;
    for (let index = 0; index < count; index++) {
      const length = body.readInt32BE(at);
      at += 4;
      values.push(length < 0 ? null : body.toString('utf8', at, at + length));
      at += Math.max(0, length);
    }
    this.#portals.set(body.toString('latin1', 0, portalEnd), { text, values });
    this.#out.push(frame('2'));
    return false;
  }

  #describe(target: string): boolean {
    if (target[0] === 'P') {
      if (!this.#portals.has(target.slice(1))) throw new MiniError('34000', 'portal does not exist');
      this.#out.push(frame('T', Buffer.from([0, 0])));
      return false;
    }
    const text = this.statements.get(target.slice(1));
    if (text === undefined)
      throw new MiniError('26000', `prepared statement "${target.slice(1)}" does not exist`);
    this.#out.push(frame('t', Buffer.from([0, 0])), frame('T', Buffer.from([0, 0])));
    return false;
  }

  async #execute(portal: string): Promise<boolean> {
    const known = this.#portals.get(portal);
    if (known === undefined) throw new MiniError('34000', `portal "${portal}" does not exist`);
    return await this.#runText(known.text, known.values);
  }

  #checkFailed(text: string): void {
    if (this.status === 'E' && !/^(rollback|commit)/i.test(text)) {
      throw new MiniError('25P02', 'current transaction is aborted');
    }
  }

  // ---- commands ----

  async #runText(text: string, values: (string | null)[] | null): Promise<boolean> {
    if (text.trim() === '') {
      this.#out.push(frame('I'));
      return false;
    }
    for (const statement of text.split(';').filter((part) => part.trim() !== '')) {
      if (await this.#runOne(statement.trim(), values)) return true;
    }
    return false;
  }

  async #runOne(text: string, values: (string | null)[] | null): Promise<boolean> {
    if (text.startsWith("SELECT pg_catalog.set_config('role'")) this.roles.push(values![0]!);
    if (/^SELECT (n, )?pg_catalog\./.test(text)) await this.#owner.options.beforeOwn?.();
    if (text.startsWith('SELECT pg_catalog.set_config(n, v')) return this.#setMany(values!);
    if (text.startsWith('SELECT n, pg_catalog.current_setting')) return this.#readMany(values!);
    this.texts.push(text);
    this.#checkFailed(text);
    const [word = '', ...rest] = text.split(/\s+/);
    const argument = rest.join(' ');
    switch (word.toUpperCase()) {
      case 'BEGIN':
        this.#before ??= new Map(this.settings);
        this.implicit = false;
        this.status = 'T';
        return this.#tag('BEGIN');
      case 'COMMIT': {
        const ok = this.status !== 'E';
        this.#end(ok);
        return this.#tag(ok ? 'COMMIT' : 'ROLLBACK');
      }
      case 'ROLLBACK':
        this.#end(false);
        return this.#tag('ROLLBACK');
      case 'SET': {
        const [, name = '', value = ''] = /^(\S+)\s*(?:=|to)\s*'?([^']*)'?$/i.exec(argument) ?? [];
        this.#set(name, value);
        return this.#tag('SET');
      }
      case 'RESET':
        for (const [name, value] of this.#defaults)
          if (argument.toUpperCase() === 'ALL') this.#set(name, value);
        return this.#tag('RESET');
      case 'DISCARD':
        if (this.implicit && this.#before !== null)
          throw new MiniError('25001', 'DISCARD ALL in a transaction');
        if (this.status !== 'I')
          throw new MiniError('25001', 'DISCARD ALL cannot run inside a transaction block');
        this.statements.clear();
        for (const [name, value] of this.#defaults) this.#set(name, value);
        return this.#tag('DISCARD ALL');
      case 'DEALLOCATE':
        if (argument.toUpperCase() === 'ALL') this.statements.clear();
        else if (!this.statements.delete(argument)) {
          throw new MiniError('26000', `prepared statement "${argument}" does not exist`);
        }
        return this.#tag(argument.toUpperCase() === 'ALL' ? 'DEALLOCATE ALL' : 'DEALLOCATE');
      case 'ERROR':
        throw new MiniError(argument.split(' ')[0] || '22012', argument);
      case 'BAD':
      case 'REFUSED':
        throw new MiniError('42601', `syntax error at "${text}"`);
      case 'NOTICE':
        this.#out.push(errorFrame('N', { S: 'NOTICE', V: 'NOTICE', C: '00000', M: argument }));
        return this.#tag('DO');
      case 'ROWS':
        return await this.#rows(Number(rest[0]), Number(rest[1]));
      case 'HANG':
        return await this.#hang();
      case 'DIE':
        await this.#flush();
        this.peer.socket.destroy();
        throw new Interrupt();
      case 'FATAL':
        this.#error('57P01', 'terminating connection due to administrator command', {
          S: 'FATAL',
          V: 'FATAL',
        });
        await this.#flush();
        this.peer.end();
        return true;
      case 'SHOW':
        return this.#row([this.settings.get(argument) ?? null], 'SHOW');
      case 'WHO':
        return this.#row([String(this.processId), ...(values ?? [])], 'SELECT 1');
      case 'COPYIN':
        return await this.#copyIn(argument);
      case 'COPYOUT':
        return await this.#copyOut(Number(rest[0]), Number(rest[1]));
      default:
        return this.#row([text, ...(values ?? [])], 'SELECT 1');
    }
  }

  #setMany(values: (string | null)[]): boolean {
    const names = readArray(values[0]!);
    const wanted = readArray(values[1]!);
    names.forEach((name, index) => {
      this.#set(name!, wanted[index] ?? this.#default(name!));
    });
    for (const value of wanted) this.#out.push(encodeDataRow([value ?? '']));
    return this.#tag(`SELECT ${names.length}`);
  }

  #readMany(values: (string | null)[]): boolean {
    const names = readArray(values[0]!);
    for (const name of names)
      this.#out.push(encodeDataRow([name, this.settings.get(this.#spelled(name!)) ?? null]));
    return this.#tag(`SELECT ${names.length}`);
  }

  async #rows(count: number, bytes: number): Promise<boolean> {
    const row = encodeDataRow(['x'.repeat(bytes)]);
    this.#out.push(frame('T', Buffer.from([0, 0])));
    for (let index = 0; index < count; index++) {
      this.#out.push(row);
      if (index % 64 === 63) await this.#flush();
    }
    return this.#tag(`SELECT ${count}`);
  }

  async #copyOut(count: number, bytes: number): Promise<boolean> {
    this.#out.push(frame('H', Buffer.from([0, 0, 1, 0, 0])));
    for (let index = 0; index < count; index++) this.#out.push(frame('d', Buffer.alloc(bytes, 0x61)));
    this.#out.push(frame('c'));
    return this.#tag(`COPY ${count}`);
  }

  /** Reads until CopyDone or CopyFail; Flush and Sync are ignored (copyfromparse.c). `early` fails at once. */
  async #copyIn(mode: string): Promise<boolean> {
    this.#out.push(frame('G', Buffer.from([0, 0, 1, 0, 0])));
    if (mode === 'early') throw new MiniError('57014', 'the COPY failed before it read anything');
    await this.#flush();
    let count = 0;
    for (;;) {
      const { type, body } = await this.#interruptible(this.peer.readFrame());
      this.frames.push({ type, body });
      switch (type) {
        case 'd':
          count++;
          if (body.toString().startsWith('bad')) throw new MiniError('22P04', 'bad line');
          continue;
        case 'c':
          return this.#tag(`COPY ${count}`);
        case 'f':
          throw new MiniError(
            '57014',
            `COPY from stdin failed: ${body.toString('latin1').replace('\0', '')}`,
          );
        case 'H':
        case 'S':
          continue;
        default:
          throw new MiniError(
            '08P01',
            `unexpected message type 0x${type.charCodeAt(0).toString(16)} during COPY`,
          );
      }
    }
  }

  async #hang(): Promise<boolean> {
    await this.#flush();
    await this.#interruptible(new Promise<never>(() => {}));
    return false;
  }

  /** Waits, unless a cancel request comes. */
  async #interruptible<T>(wanted: Promise<T>): Promise<T> {
    const cancelled = new Promise<null>((resolve) => {
      this.#cancel = () => resolve(null);
    });
    wanted.catch(() => {});
    const first = await Promise.race([wanted.catch(() => null), cancelled]);
    this.#cancel = null;
    if (this.closed) throw new Interrupt();
    if (first === null) throw new MiniError('57014', 'canceling statement due to user request');
    return first as T;
  }

  // ---- state ----

  #end(commit: boolean): void {
    this.implicit = false;
    this.status = 'I';
    this.#portals.clear();
    const before = this.#before;
    this.#before = null;
    if (commit || before === null) return;
    for (const [name, value] of before) this.settings.set(name, value);
  }

  #spelled(name: string): string {
    for (const known of this.#defaults.keys()) if (known.toLowerCase() === name.toLowerCase()) return known;
    return name;
  }

  #default(name: string): string {
    return this.#defaults.get(this.#spelled(name)) ?? '';
  }

  #set(name: string, value: string): void {
    if (value === 'invalid') throw new MiniError('22023', `invalid value for parameter "${name}": "invalid"`);
    if (this.implicit) this.#before ??= new Map(this.settings);
    this.settings.set(this.#spelled(name), value);
  }

  #ready(): void {
    for (const [name, value] of this.#reported) {
      const now = this.settings.get(name)!;
      if (now === value) continue;
      this.#reported.set(name, now);
      this.#out.push(encodeParameterStatus(name, now));
    }
    this.#out.push(encodeReadyForQuery(this.status.charCodeAt(0) as 0x49));
  }

  #row(values: (string | null)[], tag: string): boolean {
    this.#out.push(frame('T', Buffer.from([0, 0])), encodeDataRow(values));
    return this.#tag(tag);
  }

  #tag(tag: string): boolean {
    this.#out.push(frame('C', `${tag}\0`));
    return false;
  }

  #error(code: string, message: string, fields: Record<string, string> = {}): void {
    this.#out.push(errorFrame('E', { S: 'ERROR', V: 'ERROR', C: code, M: message, ...fields }));
  }

  async #flush(): Promise<void> {
    if (this.#out.length === 0) return;
    const bytes = Buffer.concat(this.#out);
    this.#out = [];
    const pieceBytes = this.#owner.options.pieceBytes;
    if (pieceBytes !== undefined) return await this.peer.sendInPieces(bytes, pieceBytes);
    if (this.peer.socket.write(bytes) || this.closed) return;
    const { socket } = this.peer;
    await new Promise<void>((resolve) => {
      const done = (): void => {
        socket.off('drain', done);
        socket.off('close', done);
        resolve();
      };
      socket.on('drain', done);
      socket.on('close', done);
    });
  }
}

class MiniError extends Error {
  readonly code: string;
  readonly fields: Record<string, string>;

  constructor(code: string, message: string, fields: Record<string, string> = {}) {
    super(message);
    this.code = code;
    this.fields = fields;
  }
}

/** An ErrorResponse or NoticeResponse with any fields. */
export function errorFrame(type: 'E' | 'N', fields: Record<string, string>): Buffer {
  const words = Object.entries(fields).map(([key, value]) => `${key}${value}\0`);
  return frame(type, `${words.join('')}\0`);
}

function readArray(literal: string): (string | null)[] {
  const items: (string | null)[] = [];
  for (const [, quoted, bare] of literal.slice(1, -1).matchAll(/"((?:[^"\\]|\\.)*)"|([^,]+)/g)) {
    items.push(quoted !== undefined ? quoted.replace(/\\(.)/g, '$1') : bare === 'NULL' ? null : bare!);
  }
  return items;
}

export class MiniPostgres {
  readonly options: MiniOptions;
  readonly backends: MiniBackend[] = [];
  readonly cancels: CancelSeen[] = [];
  #server!: ScriptedServer;

  private constructor(options: MiniOptions) {
    this.options = options;
  }

  static async listen(options: MiniOptions = {}): Promise<MiniPostgres> {
    const mini = new MiniPostgres(options);
    mini.#server = await ScriptedServer.listen(mini.#script);
    return mini;
  }

  get port(): number {
    return this.#server.port;
  }

  get connectionCount(): number {
    return this.#server.connectionCount;
  }

  /** Backends that are still connected. */
  get open(): MiniBackend[] {
    return this.backends.filter((backend) => !backend.closed);
  }

  close(): Promise<void> {
    return this.#server.close();
  }

  readonly #script: Script = async (peer) => {
    const header = await peer.readBytes(8).catch(() => null);
    if (header === null) return;
    if (header.readInt32BE(4) === 80877102) return await this.#onCancel(peer, header.readInt32BE(0));
    peer.unread(header);
    if (this.options.beforeLogin !== undefined && !(await this.options.beforeLogin(peer, peer.index))) return;
    const backend = new MiniBackend(peer, 100 + peer.index, this);
    this.backends.push(backend);
    await backend.run();
  };

  async #onCancel(peer: ScriptedPeer, length: number): Promise<void> {
    const body = await peer.readBytes(length - 8);
    const processId = body.readInt32BE(0);
    const backend = this.backends.find((known) => known.processId === processId);
    const right = backend?.secretKey.equals(body.subarray(4)) ?? false;
    const delayMs = this.options.cancelCloseDelayMs ?? 0;
    if (delayMs > 0) await new Promise((resolve) => setTimeout(resolve, delayMs));
    this.cancels.push({ processId, hit: right && backend!.cancel() });
  }
}
