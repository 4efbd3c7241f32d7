/** Issuers, roles and settings of tokens: what must be refused or called out, and what beside it must not. */
import { generateKeyPairSync } from 'node:crypto';
import { describe } from 'vitest';
import { makeCertificate } from '../support/certificates.ts';
import { DATABASE, type Given, pem, runCases } from './support.ts';

const GENERAL = '[general]\nhost = "127.0.0.1"\nauth_type = "jwt"\njwt_audience = "app"\n';
const ISSUER = '[[turnstile.issuers]]\nissuer = "https://id.example.com"\n';
const KEYS = 'jwks_url = "https://id.example.com/jwks"\n';
const OTHER =
  '[[turnstile.issuers]]\nissuer = "https://other.example.com"\njwks_url = "https://other.example.com/jwks"\n';
const TWO_DATABASES = `${DATABASE}[[databases]]\nname = "other"\nhost = "h"\n`;

const with_ = (rows: string, more: Partial<Given> = {}): Given => ({
  main: `${GENERAL}${rows}${DATABASE}`,
  ...more,
});

const rsa = generateKeyPairSync('rsa', { modulusLength: 2048 });
const jwk = (more: object = {}): object => ({
  ...rsa.publicKey.export({ format: 'jwk' }),
  kid: 'k',
  ...more,
});
const jwks = (...keys: object[]): Record<string, string> => ({ 'jwks.json': JSON.stringify({ keys }) });

describe('issuers', () => {
  runCases([
    { name: 'one with a key set is all that is needed', ...with_(`${ISSUER}${KEYS}`) },
    { name: 'one with discovery', ...with_(`${ISSUER}discovery = true\n`) },
    {
      name: 'one with no keys at all',
      ...with_(ISSUER),
      faults: ['pgdog.toml:6: turnstile.issuers[0].issuer: needs one of jwks_url'],
    },
    {
      name: 'one with two sources of keys',
      ...with_(`${ISSUER}${KEYS}discovery = true\n`),
      faults: ['turnstile.issuers[0].discovery: is given together with jwks_url'],
    },
    {
      name: 'a refused source is not reported as missing too',
      ...with_(`${ISSUER}jwks_url = "ftp://x"\n`),
      faults: ['turnstile.issuers[0].jwks_url: must be an absolute'],
    },
    {
      name: 'one issuer twice',
      ...with_(`${ISSUER}${KEYS}${ISSUER}${KEYS}`),
      faults: ['turnstile.issuers[1].issuer: is the issuer of turnstile.issuers[0] already'],
      warnings: ['turnstile.issuers[1].allowed_roles: may name the same roles'],
    },
    {
      name: 'a trailing slash makes another issuer',
      ...with_(
        `${ISSUER}${KEYS}allowed_roles = ["a"]\n[[turnstile.issuers]]\nissuer = "https://id.example.com/"\n${KEYS}allowed_roles = ["b"]\n`,
      ),
    },
    {
      name: 'a key set over http',
      ...with_(`${ISSUER}jwks_url = "http://id.example.com/jwks"\n`),
      faults: ['turnstile.issuers[0].jwks_url: must be https: allow_http_issuers permits http for loopback'],
    },
    {
      name: 'discovery over http, and over nothing that has documents',
      ...with_(
        [
          'http://id.example.com',
          'urn:example:issuer',
          'https://a.example.com?x=1',
          'https://u:p@b.example.com',
          'http://127.0.0.1:80',
        ]
          .map(
            (url, index) =>
              `[[turnstile.issuers]]\nissuer = "${url}"\ndiscovery = true\nallowed_roles = ["r${index}"]\n`,
          )
          .join(''),
      ),
      faults: [
        'turnstile.issuers[0].issuer: must be https',
        'turnstile.issuers[1].issuer: must be an https:// URL',
        'turnstile.issuers[2].issuer: must have neither ? nor #',
        'turnstile.issuers[3].issuer: must not hold a user or password',
      ],
    },
    {
      name: 'an issuer that is no URL needs none for a key set',
      ...with_(`[[turnstile.issuers]]\nissuer = "accounts"\n${KEYS}`),
    },
    {
      name: 'origins that are more than an origin, or not safe',
      ...with_(
        `${ISSUER}discovery = true\njwks_origins = ["https://k.example.com", "https://k.example.com/", "k.example.com", "http://k.example.com"]\n`,
      ),
      faults: [
        'jwks_origins: "https://k.example.com/" must be an origin',
        'jwks_origins: "k.example.com" must be an origin',
        'jwks_origins: "http://k.example.com" must be https',
      ],
    },
    {
      name: 'keys of a row that do nothing',
      ...with_(
        `${ISSUER}public_key_file = "key.pem"\njwks_cache_ttl = 60\nca_file = "ca.crt"\njwks_origins = ["https://x.example.com"]\nrequire_verified_email = true\n`,
      ),
      files: {
        'key.pem': pem(rsa).publicKey,
        'ca.crt': makeCertificate({ name: 'ca', authority: true }).cert,
      },
      warnings: [
        'jwks_cache_ttl: has no effect without jwks_url or discovery',
        'ca_file: has no effect without jwks_url or discovery',
        'jwks_origins: has no effect without discovery',
        'require_verified_email: has no effect',
      ],
    },
    {
      name: 'no audience anywhere',
      main: `[general]\nhost = "127.0.0.1"\nauth_type = "jwt"\n${ISSUER}${KEYS}${DATABASE}`,
      warnings: ['turnstile.issuers[0].audiences: are not set'],
    },
    {
      name: 'an audience for each database is enough',
      main: `[general]\nhost = "127.0.0.1"\nauth_type = "jwt"\n${ISSUER}${KEYS}[[turnstile.databases]]\nname = "app"\naudiences = ["app"]\n${DATABASE}`,
    },
    {
      name: 'databases that are not there, roles that are no expression',
      ...with_(`${ISSUER}${KEYS}databases = ["ap"]\nallowed_roles = ["/["]\nusername_claim = "a..b"\n`),
      faults: [
        'databases: there is no database "ap"; did you mean "app"?',
        'allowed_roles: "/[" is no regular expression',
        'username_claim: has an empty part',
      ],
    },
    {
      name: 'a role from an address that nobody has verified',
      ...with_(`${ISSUER}${KEYS}username_claim = "email"\nrequire_verified_email = false\n`),
      warnings: ['require_verified_email: false: whoever may write any address'],
    },
    {
      name: 'a rule makes the username claim irrelevant',
      ...with_(
        `${ISSUER}${KEYS}username_claim = "email"\nrequire_verified_email = false\n[[turnstile.role_rules]]\nclaim = "sub"\n`,
      ),
      warnings: ['require_verified_email: has no effect: no role of the issuer'],
    },
    {
      name: 'an address as a role from the keys of [general]',
      main: `${GENERAL}jwt_jwks_url = "https://x.example.com/jwks"\njwt_username_claim = "user.email"\n${DATABASE}`,
      warnings: ['general.jwt_username_claim: makes a role of an e-mail address'],
    },
    {
      name: 'the keys of a row beside keys of its own kind in [general]',
      main: `${GENERAL}jwt_jwks_url = "https://x.example.com/jwks"\n${ISSUER}${KEYS}allowed_roles = ["a"]\n${DATABASE}`,
      isAboutIssuer: true,
      warnings: [
        'turnstile.jwt_issuer: is not set: whoever the keys',
        'turnstile.issuers[0].allowed_roles: may name the same roles as jwt_jwks_url',
      ],
    },
    {
      name: 'an issuer pinned for keys that are not there',
      ...with_(`[turnstile]\njwt_issuer = "x"\n${ISSUER}${KEYS}`),
      warnings: ['turnstile.jwt_issuer: has no effect without jwt_public_key_file or jwt_jwks_url'],
    },
    {
      name: 'the keys of [general] with their issuer pinned have nothing to say',
      main: `${GENERAL}jwt_jwks_url = "https://x.example.com/jwks"\n[turnstile]\njwt_issuer = "https://x.example.com"\n${DATABASE}`,
      isAboutIssuer: true,
    },
    {
      name: 'a claim whose name is a URL is one name',
      ...with_(`${ISSUER}${KEYS}username_claim = "https://example.com/..role"\n`),
    },
  ]);
});

describe('keys in files', () => {
  const row = `${ISSUER}jwks_file = "jwks.json"\n`;
  runCases([
    { name: 'a key set', ...with_(row, { files: jwks(jwk()) }) },
    { name: 'one good key among odd ones', ...with_(row, { files: jwks({ kty: 'AKP' }, jwk()) }) },
    { name: 'no file', ...with_(row), faults: ['jwks_file: the file jwks.json: cannot be read (ENOENT)'] },
    {
      name: 'no JSON',
      ...with_(row, { files: { 'jwks.json': '{' } }),
      faults: ['the file jwks.json is not JSON'],
    },
    { name: 'no key set', ...with_(row, { files: { 'jwks.json': '[]' } }), faults: ['is no key set'] },
    { name: 'no keys', ...with_(row, { files: jwks() }), faults: ['has no key with a kid'] },
    {
      name: 'a key without a kid',
      ...with_(row, { files: jwks(jwk({ kid: undefined })) }),
      faults: ['has no key with a kid'],
    },
    {
      name: 'a key without a kid, where one may be missing',
      ...with_(`[turnstile]\nallow_missing_kid = true\n${row}`, { files: jwks(jwk({ kid: undefined })) }),
    },
    {
      name: 'a key for encryption',
      ...with_(row, { files: jwks(jwk({ use: 'enc' })) }),
      faults: ['has no key with a kid'],
    },
    {
      name: 'a private key beside a good one',
      ...with_(row, { files: jwks(jwk(), { ...rsa.privateKey.export({ format: 'jwk' }), kid: 'p' }) }),
      faults: ['holds a private or symmetric key'],
    },
    {
      name: 'a symmetric key',
      ...with_(row, { files: jwks({ kty: 'oct', k: 'AAAA', kid: 's' }) }),
      faults: ['holds a private or symmetric key'],
    },
    {
      name: 'a key that the algorithms of the row cannot use',
      ...with_(`${row}algorithms = ["ES256"]\n`, { files: jwks(jwk()) }),
      faults: ['has no key with a kid that one of ES256 can use'],
    },
    {
      name: 'the same for a PEM file',
      ...with_(`${ISSUER}public_key_file = "key.pem"\nalgorithms = ["EdDSA"]\n`, {
        files: { 'key.pem': pem(rsa).publicKey },
      }),
      faults: ['public_key_file: is a key that none of the algorithms (EdDSA) can use'],
    },
    {
      name: 'a certificate authority that is none',
      ...with_(`${ISSUER}${KEYS}ca_file = "ca.crt"\n`, { files: { 'ca.crt': 'x' } }),
      faults: ['ca_file: the file ca.crt is not PEM'],
    },
    {
      name: 'a list of revoked tokens',
      ...with_(`[turnstile]\nrevocation_file = "r.json"\n${ISSUER}${KEYS}`, {
        files: {
          'r.json': '[{"jti": "a"}, {"sub": "b", "before": 5}, {"sid": "s"}, {"kid": "k", "iss": "i"}]',
        },
      }),
    },
    ...[
      ['{}', 'must hold a list'],
      ['[{"jti": "a"}, {"before": 5}]', 'entry 1 must have exactly one of jti, sid, kid, or sub with before'],
      ['[{"sub": "a"}]', 'entry 0 must have'],
      ['[{"jti": "a", "kid": "b"}]', 'entry 0 must have'],
      ['[{"jti": 5}]', 'entry 0 must have'],
      ['[', 'is not JSON'],
    ].map(([text, fault]) => ({
      name: `a list of revoked tokens that is ${text}`,
      ...with_(`[turnstile]\nrevocation_file = "r.json"\n${ISSUER}${KEYS}`, { files: { 'r.json': text! } }),
      faults: [fault!],
    })),
  ]);
});

describe('two issuers', () => {
  const pair = (one: string, other: string): string => `${ISSUER}${KEYS}${one}${OTHER}${other}`;
  const warnings = ['turnstile.issuers[1].allowed_roles: may name the same roles as turnstile.issuers[0]'];
  runCases([
    { name: 'that may both name any role', ...with_(pair('', '')), warnings },
    { name: 'of which one may name any role', ...with_(pair('allowed_roles = ["a"]\n', '')), warnings },
    {
      name: 'with roles apart',
      ...with_(pair('allowed_roles = ["a"]\n', 'allowed_roles = ["b", "/c.*"]\n')),
    },
    {
      name: "with a role that the other's expression fits",
      ...with_(pair('allowed_roles = ["cd"]\n', 'allowed_roles = ["b", "/c.*"]\n')),
      warnings,
    },
    {
      name: 'with two expressions, of which nobody knows',
      ...with_(pair('allowed_roles = ["/a.*"]\n', 'allowed_roles = ["/b.*"]\n')),
      warnings,
    },
    {
      name: 'whose rules put different words in front',
      ...with_(
        pair('', '') +
          '[[turnstile.role_rules]]\nissuer = "https://id.example.com"\nclaim = "sub"\nadd_prefix = "a_"\n' +
          '[[turnstile.role_rules]]\nissuer = "https://other.example.com"\nclaim = "sub"\nadd_prefix = "b_"\n',
      ),
    },
    {
      name: 'with databases apart',
      main: `${GENERAL}${pair('databases = ["app"]\n', 'databases = ["other"]\n')}${TWO_DATABASES}`,
    },
  ]);
});

describe('claims', () => {
  const keyed = `${ISSUER}${KEYS}`;
  runCases([
    {
      name: 'several databases for a token that names none',
      main: `${GENERAL}${keyed}${TWO_DATABASES}`,
      warnings: [
        'turnstile.database_claim_required: false: a token that names no database may enter every one of 2',
      ],
    },
    {
      name: 'several databases, the claim required',
      main: `${GENERAL}[turnstile]\ndatabase_claim_required = true\n${keyed}${TWO_DATABASES}`,
    },
    {
      name: 'several databases, one of them for the issuer',
      main: `${GENERAL}${keyed}databases = ["app"]\n${TWO_DATABASES}`,
    },
    {
      name: 'several hosts of one database are one database',
      main: `${GENERAL}${keyed}${DATABASE}[[databases]]\nname = "app"\nhost = "h2"\nrole = "replica"\n`,
    },
    {
      name: 'a claim required that has no name',
      ...with_(`[turnstile]\ndatabase_claim_required = true\ndatabase_claims = []\n${keyed}`),
      faults: ['database_claim_required: is true, but database_claims is empty'],
    },
    {
      name: 'paths with holes',
      ...with_(
        `[turnstile]\ndatabase_claims = ["a", "b."]\naccess_claim = ".a"\npermissions_claim = "a..b"\nadmin_claim = "."\n${keyed}`,
      ),
      faults: ['database_claims: has', 'access_claim: has', 'permissions_claim: has', 'admin_claim: has'],
    },
    {
      name: 'sessions that outlive what vouched for them',
      ...with_(
        `[turnstile]\non_token_expiry = "ignore"\nexpiry_grace = 5\non_key_removed = "ignore"\nmax_token_lifetime = 0\n${keyed}`,
      ),
      warnings: [
        'on_token_expiry: ignore: a session goes on',
        'expiry_grace: has no effect while on_token_expiry is ignore',
        'on_key_removed: ignore: sessions outlive',
        'max_token_lifetime: 0: a token that leaked',
      ],
    },
    {
      name: 'everything about tokens where none is asked for',
      main: `[turnstile]\nrequire_jti = true\n${keyed}[[turnstile.role_rules]]\nclaim = "email"\n[[turnstile.claim_settings]]\nclaim = "sub"\nsetting = "x"\n[[turnstile.users]]\nname = "a"\ndisabled = true\n${DATABASE}`,
      warnings: [
        'turnstile.require_jti: has no effect while auth_type is scram and no login rule asks for a token',
        'turnstile.issuers[0].issuer: has no effect',
        'turnstile.role_rules[0].claim: has no effect',
        'turnstile.claim_settings[0].claim: has no effect',
        'turnstile.users[0].name: has no effect',
      ],
    },
  ]);
});

describe('role rules', () => {
  const rule = (text: string): string => `[[turnstile.role_rules]]\n${text}`;
  const keyed = `${ISSUER}${KEYS}`;
  runCases([
    {
      name: 'two that keep their roles apart',
      ...with_(
        `${keyed}${rule('claim = "email"\nstrip_suffix = "@a.example"\nadd_prefix = "a_"\n')}${rule('claim = "email"\nstrip_suffix = "@b.example"\nadd_prefix = "b_"\n')}`,
      ),
    },
    {
      name: 'two that make one role out of two people',
      ...with_(
        `${keyed}${rule('claim = "email"\nstrip_suffix = "@a.example"\n')}${rule('claim = "email"\nstrip_suffix = "@b.example"\n')}`,
      ),
      warnings: [
        'turnstile.role_rules[1].claim: may make the same role out of another claim as turnstile.role_rules[0]',
      ],
    },
    {
      name: 'two for different issuers never meet',
      ...with_(
        `${keyed}allowed_roles = ["a"]\n${OTHER}allowed_roles = ["b"]\n${rule('issuer = "https://id.example.com"\nclaim = "a"\n')}${rule('issuer = "https://other.example.com"\nclaim = "a"\n')}`,
      ),
    },
    {
      name: 'one that nothing reaches',
      ...with_(
        `${keyed}${rule('claim = "email"\n')}${rule('claim = "email"\nstrip_prefix = "x"\nadd_prefix = "y"\n')}`,
      ),
      warnings: [
        'turnstile.role_rules[1].claim: has no effect: turnstile.role_rules[0] fits whenever this one does',
      ],
    },
    {
      name: 'a list is not reached by a rule for one value',
      ...with_(
        `${keyed}${rule('claim = "roles"\nadd_prefix = "one_"\n')}${rule('claim = "roles"\nlist = true\nadd_prefix = "any_"\n')}`,
      ),
    },
    {
      name: 'an expression that could make two claims one',
      ...with_(`${keyed}${rule('claim = "x"\nmatch = "team-[a-z]([a-z]+)"\n')}`),
      faults: ['turnstile.role_rules[0].match: must be literal text outside of its one group'],
    },
    {
      name: 'a path with a hole, and an issuer that nobody knows',
      ...with_(`${keyed}${rule('claim = "a..b"\nissuer = "https://id.example.com/"\n')}`),
      faults: ['role_rules[0].claim: has an empty part', 'role_rules[0].issuer: is the issuer of no row'],
    },
  ]);
});

describe('settings that carry claims', () => {
  const setting = (name: string): string =>
    `[[turnstile.claim_settings]]\nclaim = "sub"\nsetting = "${name}"\n`;
  const keyed = `${ISSUER}${KEYS}`;
  runCases([
    {
      name: 'custom names',
      ...with_(`${keyed}${setting('app.user_id')}${setting('request.jwt.claim.sub')}`),
    },
    {
      name: 'names that are no custom setting, or not ours to set',
      ...with_(
        keyed +
          [
            'search_path',
            'a..b',
            '1a.b',
            "a.b'c",
            'turnstile.mac',
            'TURNSTILE.x',
            'plpgsql.variable_conflict',
          ]
            .map(setting)
            .join(''),
      ),
      faults: [
        'claim_settings[0].setting: "search_path" must be the name of a custom setting',
        'claim_settings[1].setting: "a..b" must be',
        'claim_settings[2].setting: "1a.b" must be',
        'claim_settings[3].setting: "a.b\'c" must be',
        'claim_settings[4].setting: "turnstile.mac" is in the reserved class turnstile',
        'claim_settings[5].setting: "TURNSTILE.x" is in the reserved class turnstile',
        'claim_settings[6].setting: "plpgsql.variable_conflict" is in the reserved class plpgsql',
      ],
    },
    {
      name: 'one name twice, in whatever case',
      ...with_(`${keyed}${setting('app.id')}${setting('App.ID')}${setting('request.jwt.claims')}`),
      faults: [
        'claim_settings[1].setting: is set for turnstile.claim_settings[0] already',
        'claim_settings[2].setting: is set for claims_setting already',
      ],
    },
    {
      name: 'the setting of the whole payload',
      ...with_(`[turnstile]\nclaims_setting = "role"\n${keyed}`),
      faults: ['turnstile.claims_setting: "role" must be the name of a custom setting'],
    },
    { name: 'no setting for the whole payload', ...with_(`[turnstile]\nclaims_setting = "none"\n${keyed}`) },
    {
      name: 'a signature over nothing, by a key that can be guessed, under a name with a dot',
      ...with_(
        `[turnstile]\nclaims_setting = "none"\nclaims_mac_key = "short"\nclaims_mac_key_id = "a.b"\n${keyed}`,
      ),
      faults: [
        'claims_mac_key: must have at least 16 bytes',
        'claims_mac_key: signs the setting of claims_setting, which is none',
        'claims_mac_key_id: must be 1 to 32 letters',
      ],
    },
    {
      name: 'a name for a key that is not there',
      ...with_(`[turnstile]\nclaims_mac_key_id = "k2"\n${keyed}`),
      warnings: ['claims_mac_key_id: has no effect without claims_mac_key'],
    },
  ]);
});
