/** What claims may say, and what becomes of a token that says it wrong: tables, each case with the trap in its name. */
import { describe, expect, test } from 'vitest';
import { isTokenShaped, isTokenType } from '../../src/auth/token-form.ts';
import { TokenRejected, TokenRejection } from '../../src/auth/token-rejected.ts';
import type { RoleRule, TokenRules } from '../../src/auth/token-rules.ts';
import type { RoleRuleConfig } from '../../src/config/config.ts';
import { compileRoleMatch } from '../../src/config/role-match.ts';
import { makeRoleRule, makeToken, makeVerifier, NOW_MS, NOW_SECONDS } from './support.ts';

const IDP = 'https://idp.example';
type Row = [what: string, claims: Record<string, unknown>, more?: Partial<TokenRules>];

const verify = (claims: Record<string, unknown>, more: Partial<TokenRules> = {}, typ?: unknown) =>
  makeVerifier(more).verify(makeToken(claims, typ === undefined ? {} : { typ }), NOW_MS);
const reasonOf = (claims: Record<string, unknown>, more: Partial<TokenRules> = {}, typ?: unknown) =>
  verify(claims, more, typ).then(
    () => 'accepted',
    (error: unknown) => (error instanceof TokenRejected ? error.reason : String(error)),
  );
const rule = (claim: string, more: Partial<RoleRuleConfig> = {}): RoleRule => {
  const row = makeRoleRule(claim, more);
  return { ...row, match: row.match === null ? null : compileRoleMatch(row.match) };
};

describe('typ', () => {
  test.each([
    ['at+jwt', 'at+jwt', 'accepted'],
    ['AT+JWT', 'at+jwt', 'accepted'],
    ['application/at+jwt', 'at+jwt', 'accepted'],
    ['Application/AT+jwt', 'at+jwt', 'accepted'],
    ['at+jwt', 'application/at+jwt', 'accepted'],
    ['JWT', 'at+jwt', 'bad_typ'],
    ['logout+jwt', 'at+jwt', 'bad_typ'],
    ['', 'at+jwt', 'bad_typ'],
    ['application/', 'at+jwt', 'bad_typ'],
    ['x/at+jwt', 'at+jwt', 'bad_typ'],
    [undefined, 'at+jwt', 'bad_typ'],
    ['logout+jwt', null, 'accepted'],
  ])('typ %j where %j is asked for: %s', async (typ, wanted, outcome) => {
    expect(await reasonOf({}, { typ: wanted }, typ)).toBe(outcome);
  });

  test('no typ fits nothing', () => {
    expect(isTokenType(null, '')).toBe(false);
    expect(isTokenType(undefined, 'at+jwt')).toBe(false);
  });
});

describe('what looks like a token never is a password', () => {
  const good = makeToken();
  const [h = '', p = '', s = ''] = good.split('.');
  test.each([
    ['a token', good, true],
    ['one with a bad signature part', `${h}.${p}.${'x'.repeat(9)}`, true],
    ['one that ends in a line break', `${good}\n`, true],
    ['one with padding', `${good}==`, true],
    ['one with Bearer in front', `Bearer ${good}`, true],
    ['one with a space in front', ` ${good}`, true],
    ['one without a signature', `${h}.${p}.`, true],
    ['two parts of five', `${h}.${p}.${s}.x.y`, true],
    ['a header alone', h, false],
    ['three words', 'correct.horse.battery', false],
    ['a header that is JSON but no object', `${Buffer.from('[1]').toString('base64url')}.a.b`, false],
    ['a header that is a number', `${Buffer.from('12').toString('base64url')}.a.b`, false],
    ['an empty secret', '', false],
    ['dots alone', '..', false],
    ['a long secret', 'a'.repeat(100_000), false],
  ])('%s: %#', (_what, secret, expected) => {
    expect(isTokenShaped(secret)).toBe(expected);
  });
});

describe('how long a token lives', () => {
  const hour = { maxLifetimeSeconds: 3_600 };
  test.each<Row>([
    ['exactly as long as is allowed', { iat: NOW_SECONDS, exp: NOW_SECONDS + 3_600 }, hour],
    ['one that was issued long ago', { iat: NOW_SECONDS - 3_500, exp: NOW_SECONDS + 100 }, hour],
    ['no iat, but it ends soon', { exp: NOW_SECONDS + 3_600 }, hour],
    ['any length without a limit', { iat: 0, exp: NOW_SECONDS * 2 }],
  ])('%s is accepted', async (_what, claims, more) => {
    expect(await reasonOf(claims, more)).toBe('accepted');
  });
  test.each<Row>([
    ['a second longer than is allowed', { iat: NOW_SECONDS, exp: NOW_SECONDS + 3_601 }, hour],
    ['no iat to hide how long it lives', { exp: NOW_SECONDS + 3_601 }, hour],
    ['an iat in the distant past', { iat: 0, exp: NOW_SECONDS + 10 }, hour],
    ['an iat before the epoch', { iat: -1e12, exp: NOW_SECONDS + 10 }, hour],
  ])('%s is refused', async (_what, claims, more) => {
    expect(await reasonOf(claims, more)).toBe('lifetime_too_long');
  });
  test('an iat that overflows is refused for itself', async () => {
    expect(await reasonOf({ iat: -8.64e12 - 1 })).toBe('bad_iat');
  });
});

describe('for which client and under which id', () => {
  const web = { allowedClients: ['web', 'cli'] };
  test.each<[string, Record<string, unknown>, string]>([
    ['azp', { azp: 'web' }, 'accepted'],
    ['client_id', { client_id: 'cli' }, 'accepted'],
    ['both', { azp: 'web', client_id: 'cli' }, 'accepted'],
    ['neither', {}, 'client_not_allowed'],
    ['another one', { azp: 'evil' }, 'client_not_allowed'],
    ['another one beside ours', { azp: 'evil', client_id: 'web' }, 'client_not_allowed'],
    ['a list with ours', { azp: ['web'] }, 'client_not_allowed'],
    ['other letters', { azp: 'WEB' }, 'client_not_allowed'],
    ['null beside ours', { azp: 'web', client_id: null }, 'client_not_allowed'],
  ])('%s: %#', async (_what, claims, outcome) => {
    expect(await reasonOf(claims, web)).toBe(outcome);
  });

  test.each<[string, Record<string, unknown>, string]>([
    ['an id', { jti: 'j' }, 'accepted'],
    ['none', {}, 'jti_missing'],
    ['an empty one', { jti: '' }, 'jti_missing'],
    ['a number', { jti: 5 }, 'jti_missing'],
  ])('jti where one is required: %s', async (_what, claims, outcome) => {
    expect(await reasonOf(claims, { requireJti: true })).toBe(outcome);
    expect(await reasonOf(claims, { singleUseJti: true })).toBe(outcome);
    expect(await reasonOf(claims)).toBe('accepted');
  });
});

describe('e-mail addresses', () => {
  const always: Partial<TokenRules> = { usernameClaim: 'email', verifiedEmail: 'always' };
  const claimed: Partial<TokenRules> = { usernameClaim: 'email', verifiedEmail: 'claimed' };
  test.each<[string, Record<string, unknown>, Partial<TokenRules>, string]>([
    ['verified', { email: 'a@x', email_verified: true }, always, 'accepted'],
    ['not verified', { email: 'a@x', email_verified: false }, always, 'email_not_verified'],
    ['of which nothing is known', { email: 'a@x' }, always, 'email_not_verified'],
    ['verified by a word', { email: 'a@x', email_verified: 'true' }, always, 'email_not_verified'],
    ['verified by a number', { email: 'a@x', email_verified: 1 }, always, 'email_not_verified'],
    ['nothing known, where that is let pass', { email: 'a@x' }, claimed, 'accepted'],
    ['not verified, even there', { email: 'a@x', email_verified: false }, claimed, 'email_not_verified'],
    [
      'nested, vouched for beside it',
      { u: { email: 'a@x', email_verified: true } },
      { ...always, usernameClaim: 'u.email' },
      'accepted',
    ],
    [
      'nested, vouched for elsewhere',
      { u: { email: 'a@x' }, email_verified: true },
      { ...always, usernameClaim: 'u.email' },
      'email_not_verified',
    ],
    ['that gives no role', { sub: 'alice', email: 'a@x' }, { verifiedEmail: 'always' }, 'accepted'],
    [
      'that gives the role by a rule',
      { email: 'a@x' },
      { verifiedEmail: 'always', roleRules: [rule('email', { stripSuffix: '@x' })] },
      'email_not_verified',
    ],
  ])('an address %s: %#', async (_what, claims, more, outcome) => {
    expect(await reasonOf(claims, more)).toBe(outcome);
  });
});

describe('databases, access and permissions', () => {
  test.each<[string, Record<string, unknown>, string[][]]>([
    ['none', {}, []],
    ['a string', { ns: 'app' }, [['app']]],
    ['a list', { ns: ['app', 'b'] }, [['app', 'b']]],
    ['a star, which is a name like any other', { ns: '*' }, [['*']]],
    ['two claims, both of which count', { ns: ['app', 'b'], id: 'app' }, [['app', 'b'], ['app']]],
  ])('database claims: %s', async (_what, claims, databases) => {
    expect((await verify(claims)).databases).toEqual(databases);
  });
  test.each([
    [[]],
    [''],
    [null],
    [5],
    [{}],
    [true],
    [['app', '']],
    [['app', 5]],
    [['app', null]],
    [[['app']]],
  ])('a database claim of %j is refused and never means all', async (value) => {
    for (const name of ['ns', 'db', 'id']) {
      expect(await reasonOf({ [name]: value })).toBe('bad_database_claim');
      expect(await reasonOf({ ns: 'app', [name]: value })).toBe('bad_database_claim');
    }
  });

  test.each<[unknown, string]>([
    ['ro', 'ro'],
    ['rw', 'rw'],
    ['RW', 'bad_access_claim'],
    ['roa', 'bad_access_claim'],
    ['admin', 'bad_access_claim'],
    ['', 'bad_access_claim'],
    [5, 'bad_access_claim'],
    [null, 'bad_access_claim'],
    [['ro'], 'bad_access_claim'],
  ])('an access claim of %j', async (value, outcome) => {
    const result = await verify({ a: value }).catch((error: TokenRejected) => error);
    expect(result instanceof TokenRejected ? result.reason : result.access).toBe(outcome);
  });

  test.each<[string, unknown, Record<string, string>]>([
    ['ro', { ro: { ns: ['a'] } }, { a: 'ro' }],
    ['rw beats ro', { rw: { ns: ['a'] }, ro: { ns: ['a', 'b'] } }, { a: 'rw', b: 'ro' }],
    ['ro does not undo rw', { ro: { ns: ['a'] }, rw: { ns: ['a'] } }, { a: 'rw' }],
    ['with attaching', { roa: { ns: ['a'] }, rwa: { ns: ['b'] } }, { a: 'ro', b: 'rw' }],
    ['nothing at all', {}, {}],
    ['an empty list', { rw: { ns: [] } }, {}],
  ])('permissions: %s', async (_what, p, expected) => {
    expect(Object.fromEntries((await verify({ p })).permissions ?? [])).toEqual(expected);
  });
  test.each([
    [null],
    ['rw'],
    [[]],
    [{ admin: { ns: ['a'] } }],
    [{ RW: { ns: ['a'] } }],
    [{ constructor: { ns: ['a'] } }],
    [{ rw: ['a'] }],
    [{ rw: null }],
    [{ rw: {} }],
    [{ rw: { ns: 'a' } }],
    [{ rw: { ns: ['a', 5] } }],
    [{ rw: { ns: [''] } }],
    [{ rw: { ns: ['a'], tags: ['x'] } }],
    [{ rw: { tags: ['x'] } }],
  ])('permissions of %j are refused', async (p) => {
    expect(await reasonOf({ p })).toBe('bad_permissions_claim');
  });
});

describe('delegation', () => {
  test('the actor is the principal, the subject is kept, and what is nested is history', async () => {
    const act = { sub: 'agent', act: { sub: 'older', act: { sub: 'oldest' } } };
    const { role, facts } = await verify({ act, iss: IDP });
    expect(role).toBe('agent');
    expect(facts).toMatchObject({ subject: 'alice', actor: 'agent', subjectRole: 'alice' });
    expect((await verify({})).facts).toMatchObject({ actor: null, subjectRole: null });
  });

  test('the rule that made the subject’s role makes the actor’s', async () => {
    const roleRules = [rule('email', { stripSuffix: '@x.example', addPrefix: 'u_' })];
    const claims = { email: 'alice@x.example', email_verified: true };
    const { role, facts } = await verify({ ...claims, act: { sub: 'bot@x.example' } }, { roleRules });
    expect([role, facts.actor, facts.subjectRole]).toEqual(['u_bot', 'bot@x.example', 'u_alice']);
    expect(await reasonOf({ ...claims, act: { sub: 'bot@evil.example' } }, { roleRules })).toBe('bad_act');
  });

  test.each([
    ['agent'],
    [{}],
    [null],
    [[]],
    [[{ sub: 'agent' }]],
    [{ sub: '' }],
    [{ sub: 5 }],
    [{ sub: 'a\0b' }],
    [{ sub: 'agent', iss: 'https://evil.example' }],
    [{ act: { sub: 'agent' } }],
  ])('act of %j is refused', async (act) => {
    expect(await reasonOf({ act, iss: IDP })).toBe('bad_act');
  });

  test('an actor of the same issuer is taken, and delegation may be refused as a whole', async () => {
    expect(await reasonOf({ act: { sub: 'agent', iss: IDP }, iss: IDP })).toBe('accepted');
    expect(await reasonOf({ act: { sub: 'agent' } }, { delegation: 'reject' })).toBe('delegation_refused');
    expect(await reasonOf({}, { delegation: 'reject' })).toBe('accepted');
  });
});

describe('a certificate that the token is bound to', () => {
  const thumbprint = 'A'.repeat(43);
  test.each<[unknown, string | null]>([
    [undefined, null],
    [{}, null],
    [{ jkt: 'x' }, null],
    [{ 'x5t#S256': thumbprint }, thumbprint],
  ])('cnf of %j', async (cnf, expected) => {
    expect((await verify({ cnf })).certificateThumbprint).toBe(expected);
  });
  test.each([
    [null],
    ['x'],
    [[]],
    [{ 'x5t#S256': 5 }],
    [{ 'x5t#S256': '' }],
    [{ 'x5t#S256': `${thumbprint}=` }],
  ])('cnf of %j is refused, since it may mean a binding', async (cnf) => {
    expect(await reasonOf({ cnf })).toBe('bad_cnf');
  });
});

describe('claims to roles', () => {
  const team = rule('team', { match: 'team-([a-z]+)', addSuffix: '_rw' });
  const email = rule('email', { stripSuffix: '@x.example', addPrefix: 'u_' });
  const groups = rule('groups', { list: true, stripPrefix: 'db-' });
  test.each<[string, RoleRule[], Record<string, unknown>, string]>([
    ['the first rule whose claim fits', [team, rule('sub')], { team: 'team-red' }, 'red_rw'],
    ['the next one if the first does not fit', [team, rule('sub')], { team: 'red' }, 'alice'],
    ['the next one if its claim is not there', [team, rule('sub')], {}, 'alice'],
    [
      'a suffix is taken off and a prefix put on',
      [email],
      { email: 'bob@x.example', email_verified: true },
      'u_bob',
    ],
    ['a nested claim', [rule('r.a.name')], { r: { a: { name: 'carol' } } }, 'carol'],
    ['the one entry of a list that fits', [groups], { groups: ['web', 'db-dan', 'x'] }, 'dan'],
    ['one that is there twice', [groups], { groups: ['db-dan', 'db-dan'] }, 'dan'],
    ['a plain string where a list may be', [groups], { groups: 'db-dan' }, 'dan'],
  ])('%s', async (_what, roleRules, claims, role) => {
    expect((await verify(claims, { roleRules })).role).toBe(role);
  });

  test.each<[string, RoleRule[], Record<string, unknown>, string]>([
    [
      'no rule fits: the username claim is no way around them',
      [email],
      { email: 'root@evil.example' },
      'bad_role_claim',
    ],
    ['a suffix in the middle', [email], { email: 'a@x.example.evil' }, 'bad_role_claim'],
    ['nothing is left', [email], { email: '@x.example' }, 'bad_role_claim'],
    [
      'prefix and suffix overlap',
      [rule('t', { stripPrefix: 'ab', stripSuffix: 'bc' })],
      { t: 'abc' },
      'bad_role_claim',
    ],
    ['the expression fits a part only', [team], { team: 'team-red; drop' }, 'bad_role_claim'],
    ['the expression is followed by a line break', [team], { team: 'team-red\n' }, 'bad_role_claim'],
    ['a list where none is allowed', [rule('groups')], { groups: ['alice'] }, 'bad_role_claim'],
    ['several entries fit', [groups], { groups: ['db-a', 'db-b'] }, 'several_roles'],
    [
      'several fit, and a later rule would too',
      [groups, rule('sub')],
      { groups: ['db-a', 'db-b'] },
      'several_roles',
    ],
    ['a list with something else in it', [groups], { groups: ['db-a', 5] }, 'bad_role_claim'],
    ['an empty list', [groups], { groups: [] }, 'bad_role_claim'],
    ['a value of 1,025 characters', [rule('t')], { t: 'a'.repeat(1_025) }, 'bad_role_claim'],
    ['a NUL in what is left', [email], { email: 'a\0@x.example' }, 'bad_role_claim'],
  ])('%s: refused', async (_what, roleRules, claims, reason) => {
    expect(await reasonOf(claims, { roleRules })).toBe(reason);
  });

  test('allowed_roles pick the entry of a list', async () => {
    const more = { roleRules: [groups], allowedRoles: ['/app_.*/'] };
    expect((await verify({ groups: ['db-other', 'db-app_x'] }, more)).role).toBe('app_x');
    expect(await reasonOf({ groups: ['db-app_x', 'db-app_y'] }, more)).toBe('several_roles');
  });

  test('a rule for another issuer does not apply, and without any that does the username claim is the role', async () => {
    const roleRules = [rule('team', { issuer: IDP })];
    expect((await verify({ iss: IDP, team: 'red' }, { roleRules })).role).toBe('red');
    expect((await verify({ iss: 'https://other', team: 'red' }, { roleRules })).role).toBe('alice');
  });

  test('no two values become one role by a rule (a thousand random ones)', async () => {
    const roles = new Map<string, string>();
    const rules = [rule('t', { stripPrefix: 'p', match: 'x-(.+)-y', addPrefix: 'a', addSuffix: 'b' })];
    const alphabet = ['x-', '-y', 'p', 'a', 'b', '.', '-'];
    let state = 7;
    for (let round = 0; round < 1_000; round++) {
      let value = 'px-';
      for (let part = 0; part < 4; part++) {
        state = (state * 1_103_515_245 + 12_345) % 2_147_483_648;
        value += alphabet[Math.floor((state / 2_147_483_648) * alphabet.length)];
      }
      value += '-y';
      const { role } = await verify({ t: value }, { roleRules: rules });
      expect(roles.get(role) ?? value).toBe(value);
      roles.set(role, value);
    }
    expect(roles.size).toBeGreaterThan(500);
  });
});

test('every reason has a sentence', () => {
  for (const sentence of Object.values(TokenRejection)) expect(sentence).toMatch(/^[a-z].*[^.]$/);
});
