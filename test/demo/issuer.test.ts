/** The local issuer: what it signs, what it publishes, and that it misbehaves exactly as it is told. */
import { request } from 'node:http';
import { createRemoteJWKSet, decodeJwt, decodeProtectedHeader, importSPKI, jwtVerify } from 'jose';
import { afterEach, describe, expect, it } from 'vitest';
import {
  type Issuer,
  type IssuerBehaviour,
  type IssuerOptions,
  SLOW_MS,
  startIssuer,
} from '../../src/demo/issuer.ts';

const issuers: Issuer[] = [];

afterEach(async () => {
  await Promise.all(issuers.splice(0).map((issuer) => issuer.stop()));
});

async function start(options: IssuerOptions = {}): Promise<Issuer> {
  const issuer = await startIssuer(options);
  issuers.push(issuer);
  return issuer;
}

function verify(issuer: Issuer, token: string): Promise<string> {
  const keys = createRemoteJWKSet(new URL(issuer.jwksUrl));
  return jwtVerify(token, keys, { issuer: issuer.url, audience: 'app' }).then(
    () => 'ok',
    (error: { code?: string }) => error.code ?? String(error),
  );
}

describe('tokens', () => {
  it.each([
    'ES256',
    'RS256',
    'EdDSA',
  ] as const)('%s is verified by the published key and by the PEM', async (algorithm) => {
    const issuer = await start({ algorithm });
    const token = await issuer.mint({ subject: 'alice', audience: 'app' });
    expect(await verify(issuer, token)).toBe('ok');
    const { payload } = await jwtVerify(token, await importSPKI(await issuer.publicKeyPem(), algorithm));
    expect(payload).toMatchObject({ sub: 'alice', aud: 'app', iss: issuer.url });
    expect(payload.exp! - payload.iat!).toBe(300);
    expect(await issuer.privateKeyPem()).toContain('BEGIN PRIVATE KEY');
  });

  it.each([
    ['over', { ttlSeconds: -1 }, 'ERR_JWT_EXPIRED'],
    ['forged under the right kid', { forged: true }, 'ERR_JWS_SIGNATURE_VERIFICATION_FAILED'],
    ['of a kid nobody published', { keyId: 'nobody' }, 'ERR_JWKS_NO_MATCHING_KEY'],
    ['for somebody else', { audience: 'other' }, 'ERR_JWT_CLAIM_VALIDATION_FAILED'],
    ['whose audience was taken out', { claims: { aud: undefined } }, 'ERR_JWT_CLAIM_VALIDATION_FAILED'],
    ['with a second role', { claims: { role: 'x' } }, 'ok'],
  ])('a token that is %s', async (_what, options, outcome) => {
    const issuer = await start();
    const token = await issuer.mint({ subject: 'alice', audience: 'app', ...options });
    expect(await verify(issuer, token)).toBe(outcome);
  });

  it('time is an argument, and no ttl means no exp', async () => {
    const issuer = await start();
    const token = await issuer.mint({ subject: 'alice', ttlSeconds: 10, nowMs: 1_000_900 });
    expect(decodeJwt(token)).toEqual({ iss: issuer.url, sub: 'alice', iat: 1_000, exp: 1_010 });
    expect(decodeJwt(await issuer.mint({ subject: 'a', ttlSeconds: null }))).not.toHaveProperty('exp');
  });
});

describe('rotation', () => {
  it('the old key stays published until it is retired', async () => {
    const issuer = await start();
    const first = issuer.keyId;
    const old = await issuer.mint({ subject: 'alice', audience: 'app' });
    await issuer.rotate();
    const young = await issuer.mint({ subject: 'alice', audience: 'app' });
    expect(decodeProtectedHeader(young).kid).toBe(issuer.keyId);
    expect(issuer.keyId).not.toBe(first);
    expect([await verify(issuer, old), await verify(issuer, young)]).toEqual(['ok', 'ok']);
    await issuer.rotate(true);
    expect([await verify(issuer, old), await verify(issuer, young)]).toEqual([
      'ERR_JWKS_NO_MATCHING_KEY',
      'ERR_JWKS_NO_MATCHING_KEY',
    ]);
    const late = await issuer.mint({ subject: 'alice', audience: 'app', keyId: first });
    expect(decodeProtectedHeader(late).kid).toBe(first);
  });
});

describe('behaviour', () => {
  it('every request for the key set is counted, whatever its answer', async () => {
    const issuer = await start();
    const seen: unknown[] = [];
    for (const behaviour of ['ok', 'down', 'redirect', 'huge', 'html'] as const) {
      issuer.setBehaviour(behaviour);
      const response = await fetch(issuer.jwksUrl, { redirect: 'manual' });
      const body = await response.text();
      seen.push([behaviour, response.status, response.headers.get('content-type'), body.length > 1_000_000]);
    }
    expect(seen).toEqual([
      ['ok', 200, 'application/json', false],
      ['down', 503, 'text/plain', false],
      ['redirect', 302, null, false],
      ['huge', 200, 'application/json', true],
      ['html', 200, 'text/html', false],
    ]);
    expect(issuer.requests).toBe(5);
  });

  it('late, compressed, empty, torn and endless answers', async () => {
    const issuer = await start();
    const text = async (behaviour: IssuerBehaviour): Promise<string> => {
      issuer.setBehaviour(behaviour);
      return (await fetch(issuer.jwksUrl)).text();
    };
    const startedAtMs = performance.now();
    expect(await text('slow')).toBe(issuer.keySetJson());
    expect(performance.now() - startedAtMs).toBeGreaterThan(SLOW_MS - 10);
    expect((await text('bomb')).length).toBeGreaterThan(1_000_000);
    expect(await text('empty')).toBe('{"keys":[]}');
    await expect(text('torn')).rejects.toThrow();
    issuer.setBehaviour('trickle');
    const reader = (await fetch(issuer.jwksUrl)).body!.getReader();
    for (let read = 0; read < 3; read++) expect((await reader.read()).done).toBe(false);
    await reader.cancel();
  });

  it('the discovery document is counted and can be made to lie', async () => {
    const issuer = await start();
    const address = `${issuer.url}/.well-known/openid-configuration`;
    const document = { issuer: issuer.url, jwks_uri: issuer.jwksUrl };
    expect(await (await fetch(address)).json()).toEqual(document);
    issuer.setDiscovery({ issuer: 'https://evil.example', more: 1 });
    expect(await (await fetch(address)).json()).toEqual({
      ...document,
      issuer: 'https://evil.example',
      more: 1,
    });
    expect([issuer.discoveryRequests, issuer.requests]).toEqual([2, 0]);
  });

  it('a withdrawn key is no longer published, and a token may have any typ', async () => {
    const issuer = await start();
    await issuer.rotate();
    issuer.withdraw('key-1');
    expect(issuer.keySetJson()).not.toContain('key-1');
    expect(issuer.keySetJson()).toContain('key-2');
    expect(decodeProtectedHeader(await issuer.mint({ subject: 'a', typ: 'at+jwt' })).typ).toBe('at+jwt');
  });

  it('the redirect leads to the keys, so that a client that follows it would accept them', async () => {
    const issuer = await start();
    issuer.setBehaviour('redirect');
    const response = await fetch(issuer.jwksUrl);
    expect(response.redirected).toBe(true);
    expect(await response.json()).toMatchObject({ keys: [{ kid: issuer.keyId }] });
  });

  it('a hanging answer is ended by stop, and a reset one by the issuer', async () => {
    const issuer = await start();
    issuer.setBehaviour('reset');
    await expect(fetch(issuer.jwksUrl)).rejects.toThrow();
    issuer.setBehaviour('hang');
    const hanging = fetch(issuer.jwksUrl).then(
      () => 'answered',
      () => 'broken',
    );
    await expect.poll(() => issuer.requests).toBe(2);
    await issuer.stop();
    expect(await hanging).toBe('broken');
  });

  it('a private key is in no answer', async () => {
    const issuer = await start();
    const set = (await (await fetch(issuer.jwksUrl)).json()) as { keys: Record<string, unknown>[] };
    expect(set.keys.map((key) => Object.keys(key).sort())).toEqual([
      ['alg', 'crv', 'kid', 'kty', 'use', 'x', 'y'],
    ]);
  });
});

describe('the token endpoint', () => {
  const endpoint = { tokenEndpoint: { audience: 'app', ttlSeconds: 60 } };

  it('gives a token to a form with sub, and to nothing else', async () => {
    const issuer = await start(endpoint);
    const post = (body: string): Promise<Response> => fetch(issuer.tokenUrl!, { method: 'POST', body });
    expect(await verify(issuer, await (await post('sub=alice')).text())).toBe('ok');
    expect((await post('')).status).toBe(400);
    expect((await post('user=alice')).status).toBe(400);
    expect((await fetch(issuer.tokenUrl!)).status).toBe(404);
    await expect(post(`sub=${'x'.repeat(10_000)}`)).rejects.toThrow();
  });

  it('is not there unless it was asked for', async () => {
    const issuer = await start();
    expect(issuer.tokenUrl).toBeNull();
    expect((await fetch(`${issuer.url}/token`, { method: 'POST', body: 'sub=alice' })).status).toBe(404);
  });

  it('a request under another host name, as a rebound page sends it, gets nothing', async () => {
    const issuer = await start(endpoint);
    const status = await new Promise<number | undefined>((resolve, reject) => {
      const attempt = request(
        issuer.tokenUrl!,
        { method: 'POST', headers: { host: 'evil.example' } },
        (response) => resolve(response.resume().statusCode),
      );
      attempt.once('error', reject);
      attempt.end('sub=alice');
    });
    expect(status).toBe(404);
  });
});
