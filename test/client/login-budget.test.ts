import { describe, expect, test } from 'vitest';
import { ADDRESSES_MAX, type BudgetLimits, LoginBudget } from '../../src/client/login-budget.ts';

const NONE = Number.POSITIVE_INFINITY;

function make(limits: Partial<BudgetLimits>): { budget: LoginBudget; pass: (ms: number) => void } {
  let nowMs = 1_000;
  const all = {
    maxLoginsPerAddress: NONE,
    failedLoginsPerAddress: NONE,
    tokenChecksPerSecond: NONE,
    ...limits,
  };
  return { budget: new LoginBudget(all, () => nowMs), pass: (ms) => (nowMs += ms) };
}

describe('logins under way', () => {
  test('are counted by address, and one more than the limit is refused', () => {
    const { budget } = make({ maxLoginsPerAddress: 2 });
    for (let count = 0; count < 2; count++) budget.begin('10.0.0.1');
    expect(budget.tooMany('10.0.0.1')).toBeNull();
    budget.begin('::ffff:10.0.0.1');
    expect(budget.tooMany('10.0.0.1')).toMatchObject({ code: '53300', severity: 'FATAL' });
    expect(budget.tooMany('10.0.0.1', 1)).toBeNull();
    expect(budget.tooMany('10.0.0.2')).toBeNull();
    budget.end('10.0.0.1');
    expect(budget.tooMany('10.0.0.1')).toBeNull();
  });

  test('of one /64 are those of one address', () => {
    const { budget } = make({ maxLoginsPerAddress: 1 });
    budget.begin('2001:db8:1:2::1');
    budget.begin('2001:db8:1:2:ffff::9');
    expect(budget.tooMany('2001:db8:1:2::5')).toMatchObject({ code: '53300' });
    expect(budget.tooMany('2001:db8:1:3::1')).toBeNull();
  });

  test('leave no memory behind', () => {
    const { budget } = make({ maxLoginsPerAddress: 5 });
    for (let host = 0; host < 200; host++) budget.begin(`10.0.0.${host}`);
    expect(budget.addressCount).toBe(200);
    for (let host = 0; host < 200; host++) budget.end(`10.0.0.${host}`);
    expect(budget.addressCount).toBe(0);
  });
});

describe('failed logins', () => {
  const spend = (budget: LoginBudget, count: number, address = '10.0.0.1'): void => {
    for (let failure = 0; failure < count; failure++) budget.onFailure(address);
  };

  test('are allowed up to the limit, and come back within a minute', () => {
    const { budget, pass } = make({ failedLoginsPerAddress: 60 });
    spend(budget, 59);
    expect(budget.mayProve('10.0.0.1')).toBeNull();
    spend(budget, 1);
    expect(budget.mayProve('10.0.0.1')).toMatchObject({
      code: '53300',
      message: 'too many failed logins from this address',
    });
    pass(999);
    expect(budget.mayProve('10.0.0.1')).not.toBeNull();
    pass(1);
    expect(budget.mayProve('10.0.0.1')).toBeNull();
    spend(budget, 1);
    expect(budget.mayProve('10.0.0.1')).not.toBeNull();
    pass(3_600_000);
    spend(budget, 59);
    expect(budget.mayProve('10.0.0.1')).toBeNull();
  });

  test('more failures than the limit do not lengthen the wait', () => {
    const { budget, pass } = make({ failedLoginsPerAddress: 60 });
    spend(budget, 10_000);
    pass(1_000);
    expect(budget.mayProve('10.0.0.1')).toBeNull();
  });

  test('of an address with many of them allow so many proofs at a time as it may still fail', () => {
    const { budget } = make({ failedLoginsPerAddress: 10 });
    const start = (count: number): (() => void)[] =>
      Array.from({ length: count }, () => budget.startProof('10.0.0.1')).filter(
        (one) => typeof one === 'function',
      );
    spend(budget, 5);
    const many = start(1_000);
    expect(many).toHaveLength(1_000);
    for (const end of many) end();
    spend(budget, 2);
    const few = start(1_000);
    expect(few).toHaveLength(3);
    expect(budget.mayProve('10.0.0.1')).not.toBeNull();
    few[0]?.();
    expect(start(1_000)).toHaveLength(1);
  });

  test('of one address are not another’s', () => {
    const { budget } = make({ failedLoginsPerAddress: 1 });
    spend(budget, 1, '2001:db8::1');
    expect(budget.mayProve('2001:db8::ffff')).not.toBeNull();
    expect(budget.mayProve('10.0.0.1')).toBeNull();
  });

  test('of a hundred thousand addresses take bounded memory', () => {
    const { budget } = make({ failedLoginsPerAddress: 1 });
    for (let host = 0; host < 100_000; host++)
      spend(budget, 1, `10.${host >> 16}.${(host >> 8) & 255}.${host & 255}`);
    expect(budget.addressCount).toBe(ADDRESSES_MAX);
    expect(budget.mayProve('10.1.134.159')).not.toBeNull();
    expect(budget.mayProve('10.0.0.0')).toBeNull();
  });

  test('without a limit are not even counted', () => {
    const { budget } = make({});
    spend(budget, 1_000);
    expect(budget.mayProve('10.0.0.1')).toBeNull();
    expect(budget.addressCount).toBe(0);
  });
});

describe('token checks', () => {
  test('are so many a second, over all addresses', () => {
    const { budget, pass } = make({ tokenChecksPerSecond: 10 });
    const take = (count: number): number =>
      Array.from({ length: count }, () => budget.takeCheck()).filter(Boolean).length;
    expect(take(25)).toBe(10);
    pass(500);
    expect(take(25)).toBe(5);
    pass(60_000);
    expect(take(25)).toBe(10);
  });

  test('one that turned out good is given back, so that a storm of good tokens is not cut off', () => {
    const { budget } = make({ tokenChecksPerSecond: 2 });
    for (let login = 0; login < 50; login++) {
      expect(budget.takeCheck()).toBe(true);
      budget.giveCheckBack();
    }
    for (let extra = 0; extra < 9; extra++) budget.giveCheckBack();
    expect([budget.takeCheck(), budget.takeCheck(), budget.takeCheck()]).toEqual([true, true, false]);
  });

  test('new limits hold at once, and what was spent stays spent', () => {
    const { budget } = make({ tokenChecksPerSecond: 3, failedLoginsPerAddress: 2 });
    for (let check = 0; check < 3; check++) budget.takeCheck();
    budget.onFailure('10.0.0.1');
    budget.onFailure('10.0.0.1');
    budget.setLimits({ maxLoginsPerAddress: NONE, failedLoginsPerAddress: 1, tokenChecksPerSecond: 100 });
    expect(budget.takeCheck()).toBe(false);
    expect(budget.mayProve('10.0.0.1')).not.toBeNull();
    budget.setLimits({ maxLoginsPerAddress: NONE, failedLoginsPerAddress: NONE, tokenChecksPerSecond: NONE });
    expect(budget.takeCheck()).toBe(true);
    expect(budget.mayProve('10.0.0.1')).toBeNull();
  });
});
