/**
 * A local token issuer for the demo and the tests: signs JWTs, serves its key set (RFC 7517) on 127.0.0.1, rotates
 * keys, and misbehaves on demand. Owns its private keys, in memory only. Must not know how tokens are verified.
 */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import { gzipSync } from 'node:zlib';
import {
  type CryptoKey,
  exportJWK,
  exportPKCS8,
  exportSPKI,
  generateKeyPair,
  type JWK,
  type JWTPayload,
  SignJWT,
} from 'jose';

/**
 * What the server does with a request for the key set: `ok` answers; `slow` answers after `SLOW_MS`; `down` says 503;
 * `reset` drops the connection; `hang` never answers; `trickle` sends a byte now and then and never ends; `redirect`
 * points (302) to a path that serves the set; `huge` sends 1 MiB of JSON; `bomb` the same compressed to a few
 * kilobytes; `html` says 200 with a page; `empty` has a set without keys; `torn` breaks off in the middle.
 */
export type IssuerBehaviour =
  | 'ok'
  | 'slow'
  | 'down'
  | 'reset'
  | 'hang'
  | 'trickle'
  | 'redirect'
  | 'huge'
  | 'bomb'
  | 'html'
  | 'empty'
  | 'torn';

export interface IssuerOptions {
  /** Default 0: any free port. */
  port?: number;
  /** JWS algorithm of its keys. Default ES256, which keeps tokens short. */
  algorithm?: 'ES256' | 'RS256' | 'EdDSA';
  /** PEM: serve HTTPS with this certificate, which must be good for 127.0.0.1. Absent: HTTP. */
  tls?: { cert: string; key: string };
  /** `POST /token` with a form `sub=…` answers with a token for this audience. Absent: no such endpoint. */
  tokenEndpoint?: { audience: string; ttlSeconds: number };
}

export interface MintOptions {
  subject: string;
  /** `exp` is that long after `nowMs`; negative for a token that is over; null for no `exp`. Default 300. */
  ttlSeconds?: number | null;
  audience?: string | string[];
  /** Additional claims. They win over ours; `undefined` takes a claim out. */
  claims?: Record<string, unknown>;
  /** `kid` to put in the header; a key of that name signs if there is one, else the current key. */
  keyId?: string;
  /** `typ` of the header. Default `JWT`. */
  typ?: string;
  /** Sign with a key that was never published, under the usual `kid`. */
  forged?: boolean;
  nowMs?: number;
}

interface SigningKey {
  id: string;
  privateKey: CryptoKey;
  publicKey: CryptoKey;
  jwk: JWK;
}

const HOST = '127.0.0.1';
const JWKS_PATH = '/.well-known/jwks.json';
const MOVED_PATH = '/moved/jwks.json';
const FORM_BYTES_MAX = 4_096;
const HUGE_BYTES = 1_048_576;
/** How long a slow answer takes. */
export const SLOW_MS = 300;
const TRICKLE_MS = 20;

/** Starts an issuer. Rejects when the port is taken. */
export async function startIssuer(options: IssuerOptions = {}): Promise<Issuer> {
  const algorithm = options.algorithm ?? 'ES256';
  const [key, forgedKey] = await Promise.all([newKey(algorithm, 'key-1'), newKey(algorithm, 'key-1')]);
  const issuer = new Issuer(algorithm, key, forgedKey, options);
  await issuer.listen(options.port ?? 0);
  return issuer;
}

/** Made by `startIssuer`. */
export class Issuer {
  readonly #algorithm: string;
  readonly #forgedKey: SigningKey;
  readonly #tokenEndpoint: { audience: string; ttlSeconds: number } | null;
  readonly #server: Server;
  readonly #scheme: 'http' | 'https';
  readonly #keys: SigningKey[];
  #published: SigningKey[];
  #behaviour: IssuerBehaviour = 'ok';
  #requests = 0;
  #discoveryRequests = 0;
  /** What the discovery document says instead of the truth. */
  #discovery: Record<string, unknown> = {};
  #port = 0;

  constructor(algorithm: string, key: SigningKey, forgedKey: SigningKey, options: IssuerOptions) {
    this.#algorithm = algorithm;
    this.#forgedKey = forgedKey;
    this.#tokenEndpoint = options.tokenEndpoint ?? null;
    this.#keys = [key];
    this.#published = [key];
    const onRequest = (request: IncomingMessage, response: ServerResponse): void =>
      this.#answer(request, response);
    this.#scheme = options.tls === undefined ? 'http' : 'https';
    this.#server =
      options.tls === undefined ? createServer(onRequest) : createTlsServer(options.tls, onRequest);
  }

  /** The `iss` of its tokens. */
  get url(): string {
    return `${this.#scheme}://${HOST}:${this.#port}`;
  }

  get jwksUrl(): string {
    return this.url + JWKS_PATH;
  }

  /** Where `POST sub=…` gets a token; null when the issuer was started without the endpoint. */
  get tokenUrl(): string | null {
    return this.#tokenEndpoint ? `${this.url}/token` : null;
  }

  /** Requests for the key set so far, whatever the answer was. */
  get requests(): number {
    return this.#requests;
  }

  /** Requests for the discovery document so far. */
  get discoveryRequests(): number {
    return this.#discoveryRequests;
  }

  /** `kid` of the key that signs now. */
  get keyId(): string {
    return this.#current().id;
  }

  setBehaviour(behaviour: IssuerBehaviour): void {
    this.#behaviour = behaviour;
  }

  /** Makes the discovery document lie: these members beside or instead of the true ones. */
  setDiscovery(members: Record<string, unknown>): void {
    this.#discovery = members;
  }

  /** A signed compact JWT with iss, sub, iat and, unless told otherwise, exp. */
  mint(options: MintOptions): Promise<string> {
    const nowSeconds = Math.floor((options.nowMs ?? Date.now()) / 1000);
    const ttlSeconds = options.ttlSeconds === undefined ? 300 : options.ttlSeconds;
    const payload: JWTPayload = { iss: this.url, sub: options.subject, iat: nowSeconds };
    if (ttlSeconds !== null) payload.exp = nowSeconds + ttlSeconds;
    if (options.audience !== undefined) payload.aud = options.audience;
    const named = this.#keys.find((candidate) => candidate.id === options.keyId);
    const key = options.forged ? this.#forgedKey : (named ?? this.#current());
    const header = {
      alg: this.#algorithm,
      typ: options.typ ?? 'JWT',
      kid: options.keyId ?? this.#current().id,
    };
    const claims = Object.entries({ ...payload, ...options.claims }).filter(
      ([, value]) => value !== undefined,
    );
    return new SignJWT(Object.fromEntries(claims)).setProtectedHeader(header).sign(key.privateKey);
  }

  /** Signs with a new key from now on. The old ones stay in the key set unless `retire`. Returns the new `kid`. */
  async rotate(retire = false): Promise<string> {
    const key = await newKey(this.#algorithm, `key-${this.#keys.length + 1}`);
    this.#keys.push(key);
    this.#published = retire ? [key] : [...this.#published, key];
    return key.id;
  }

  /** Takes a key out of the key set, as an issuer does that has lost it. It still signs here. */
  withdraw(keyId: string): void {
    this.#published = this.#published.filter((key) => key.id !== keyId);
  }

  /** The key set as it is served, to be put into a file. */
  keySetJson(): string {
    return JSON.stringify(this.#keySet());
  }

  /** Public half of the current key, SubjectPublicKeyInfo in PEM. */
  publicKeyPem(): Promise<string> {
    return exportSPKI(this.#current().publicKey);
  }

  /** The current private key, PKCS #8 in PEM. */
  privateKeyPem(): Promise<string> {
    return exportPKCS8(this.#current().privateKey);
  }

  /** Called once, by `startIssuer`. */
  listen(port: number): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#server.once('error', reject);
      this.#server.listen(port, HOST, () => {
        this.#port = (this.#server.address() as AddressInfo).port;
        resolve();
      });
    });
  }

  /** Ends the server, hanging requests included. */
  stop(): Promise<void> {
    return new Promise((resolve) => {
      this.#server.close(() => resolve());
      this.#server.closeAllConnections();
    });
  }

  #current(): SigningKey {
    return this.#keys.at(-1)!;
  }

  #answer(request: IncomingMessage, response: ServerResponse): void {
    // A page in a browser can send requests here under a name of its own (DNS rebinding); ours is an address.
    const host = (request.headers.host ?? '').replace(/:\d+$/, '');
    const route = host === HOST || host === 'localhost' ? `${request.method} ${request.url}` : 'another host';
    if (route === `GET ${JWKS_PATH}`) {
      this.#answerKeySet(response);
    } else if (route === `GET ${MOVED_PATH}`) {
      sendJson(response, this.#keySet());
    } else if (route === 'GET /.well-known/openid-configuration') {
      this.#discoveryRequests++;
      sendJson(response, { issuer: this.url, jwks_uri: this.jwksUrl, ...this.#discovery });
    } else if (route === 'POST /token' && this.#tokenEndpoint) {
      this.#answerToken(request, response);
    } else {
      send(response, 404, 'text/plain', 'not found\n');
    }
  }

  #answerKeySet(response: ServerResponse): void {
    this.#requests++;
    const behaviour = this.#behaviour;
    switch (behaviour) {
      case 'ok':
        sendJson(response, this.#keySet());
        break;
      case 'slow':
        setTimeout(() => sendJson(response, this.#keySet()), SLOW_MS);
        break;
      case 'down':
        send(response, 503, 'text/plain', 'down\n');
        break;
      case 'reset':
        response.destroy();
        break;
      case 'hang':
        break;
      case 'trickle': {
        response.writeHead(200, { 'content-type': 'application/json' });
        const timer = setInterval(() => response.write(' '), TRICKLE_MS);
        response.on('close', () => clearInterval(timer));
        break;
      }
      case 'redirect':
        response.writeHead(302, { location: this.url + MOVED_PATH }).end();
        break;
      case 'huge':
        sendJson(response, { ...this.#keySet(), padding: 'x'.repeat(HUGE_BYTES) });
        break;
      case 'bomb': {
        const text = JSON.stringify({ ...this.#keySet(), padding: 'x'.repeat(HUGE_BYTES) });
        response.writeHead(200, { 'content-type': 'application/json', 'content-encoding': 'gzip' });
        response.end(gzipSync(text));
        break;
      }
      case 'empty':
        sendJson(response, { keys: [] });
        break;
      case 'torn':
        response.writeHead(200, { 'content-type': 'application/json' });
        response.write(JSON.stringify(this.#keySet()), () => response.destroy());
        break;
      case 'html':
        send(response, 200, 'text/html', '<!doctype html><title>Sign in</title>\n');
        break;
      default:
        behaviour satisfies never;
    }
  }

  #answerToken(request: IncomingMessage, response: ServerResponse): void {
    let form = '';
    request.setEncoding('utf8');
    request.on('data', (chunk: string) => {
      form += chunk;
      if (form.length > FORM_BYTES_MAX) request.destroy();
    });
    request.on('end', () => {
      const subject = new URLSearchParams(form).get('sub');
      if (!subject || !this.#tokenEndpoint) return send(response, 400, 'text/plain', 'give sub=NAME\n');
      this.mint({ subject, ...this.#tokenEndpoint }).then(
        (token) => send(response, 200, 'text/plain', token),
        () => send(response, 500, 'text/plain', 'cannot sign\n'),
      );
    });
    request.on('error', () => {});
  }

  #keySet(): { keys: JWK[] } {
    return { keys: this.#published.map((key) => key.jwk) };
  }
}

function sendJson(response: ServerResponse, value: unknown): void {
  send(response, 200, 'application/json', JSON.stringify(value));
}

function send(response: ServerResponse, status: number, type: string, body: string): void {
  response.writeHead(status, { 'content-type': type, 'cache-control': 'no-store' }).end(body);
}

async function newKey(algorithm: string, id: string): Promise<SigningKey> {
  const { privateKey, publicKey } = await generateKeyPair(algorithm, { extractable: true });
  const jwk: JWK = { ...(await exportJWK(publicKey)), kid: id, alg: algorithm, use: 'sig' };
  return { id, privateKey, publicKey, jwk };
}
