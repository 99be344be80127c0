-- Owns the quota state that several hosts share: every decision is one run of this script, hence all or nothing.
--
-- Spliced in before this text: `server_us()` (the server's clock, microseconds) and SETTLE_US, LEASE_US, HOSTS_MAX.
-- KEYS: 1 epoch, 2 hosts, 3 a tenant (or, for `beat`, the set of tenants this host is asked to count).
-- ARGV: operation, host, session, epoch id, then the operation's own.
-- All reads and refusals come before the first write, so a write that is denied (OOM, READONLY) leaves nothing behind.
-- Numbers are doubles, exact below 2^53; they are written with %.0f, as Lua's own text has 14 digits only.
--
-- epoch   id, run, start                what was counted before `start` (flush, restart, failover) is not known here
-- hosts   name -> "session expires state before"   state m: must have counted a tenant before its caps are decided
--                                       before: sessions whose slots still count, until this one has declared its own
-- tenant  g            epoch it belongs to
--         rn rf rl     calls owed, part of one more (in 1/window of a call), as of when
--         rc rw        the plan's calls and window that rf is measured in
--         ds de du df  day: start, end, calls used, 1: begun here, so nobody need count; d:<host> its share of du
--         ms me mu mf  month, the same; m:<host>
--         s:<host>     "session slots"

local operation, host, session, epoch_id = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local prefix = string.sub(KEYS[2], 1, -6)  -- without "hosts"
local now = server_us()
local STEP_US, HOUR_US, DAY_US = 5000000, 3600000000, 86400000000
local KEEP_US_MAX = 3650 * DAY_US
local UNLIMITED = 2 ^ 52
local SPARE_CALLS_MIN = 16

local function whole(number) return string.format('%.0f', number) end

local function read(key)
  local flat, fields = redis.call('HGETALL', key), {}
  for at = 1, #flat, 2 do fields[flat[at]] = flat[at + 1] end
  return fields
end

local function read_hosts()
  local hosts = {}
  for name, text in pairs(read(KEYS[2])) do
    local own, expires, state, before = string.match(text, '^(%S+) (%d+) (%a) (.*)$')
    hosts[name] = {session = own, expires = tonumber(expires), state = state, before = before}
  end
  return hosts
end

local function write_host(name, one)
  redis.call('HSET', KEYS[2], name, one.session .. ' ' .. whole(one.expires) .. ' ' .. one.state .. ' ' .. one.before)
end

-- The epoch's start and all hosts; or nil and why this session may not go on.
local function verify()
  local epoch = redis.call('HMGET', KEYS[1], 'id', 'start')
  -- A clock set back to before the epoch began: its instants mean nothing any more.
  if epoch[1] ~= epoch_id or tonumber(epoch[2]) > now then return nil, nil, 'LOST' end
  local hosts = read_hosts()
  local own = hosts[host]
  if not own or own.session ~= session or own.expires <= now then return nil, nil, 'FENCED' end
  return tonumber(epoch[2]), hosts, nil
end

-- A tenant's fields, with what was changed of them.
local function open_tenant()
  local fields = read(KEYS[3])
  local tenant = {fields = fields, changed = {}, is_stale = next(fields) ~= nil and fields.g ~= epoch_id}
  if fields.g ~= epoch_id then tenant.fields = {}; tenant.changed.g = true; tenant.fields.g = epoch_id end
  return tenant
end

local function get(tenant, name) return tonumber(tenant.fields[name]) end

local function set(tenant, name, value)
  local text = type(value) == 'number' and whole(value) or value
  if tenant.fields[name] ~= text then tenant.fields[name] = text; tenant.changed[name] = true end
end

local function save(tenant)
  if next(tenant.changed) == nil then return end
  local put, gone = {}, {}
  for name in pairs(tenant.changed) do
    local value = tenant.fields[name]
    if value then put[#put + 1] = name; put[#put + 1] = value else gone[#gone + 1] = name end
  end
  if tenant.is_stale then redis.call('DEL', KEYS[3]); gone = {} end
  redis.call('HSET', KEYS[3], unpack(put))
  if #gone > 0 then redis.call('HDEL', KEYS[3], unpack(gone)) end
  -- Long enough for a full bucket, both windows and any call that holds a slot.
  local keep_us, owed = DAY_US, get(tenant, 'rn')
  if owed then keep_us = math.max(keep_us, 2 * (owed + 1) * get(tenant, 'rw') / get(tenant, 'rc')) end
  for _, window in ipairs({'d', 'm'}) do
    local till = get(tenant, window .. 'e')
    if till then keep_us = math.max(keep_us, till - now + HOUR_US) end
  end
  redis.call('PEXPIRE', KEYS[3], whole(math.ceil(math.min(keep_us, KEEP_US_MAX) / 1000)))
end

-- Slots held by all living hosts. `before` counts until the new session has declared everything.
local function slots_of(tenant, hosts)
  local total = 0
  for name, one in pairs(hosts) do
    local text = tenant.fields['s:' .. name]
    if text and one.expires > now then
      local holder, slots = string.match(text, '^(%S+) (%d+)$')
      if holder == one.session or string.find(one.before, holder, 1, true) then total = total + tonumber(slots) end
    end
  end
  return total
end

local function own_slots(tenant)
  local holder, slots = string.match(tenant.fields['s:' .. host] or '', '^(%S+) (%d+)$')
  return holder == session and tonumber(slots) or 0
end

-- Rate: a GCRA whose debt is `owed` calls and `part` of one more; exact, as gateway/quota/gcra.py proves its bounds.

local function multiply_divide(factor, calls, window)  -- factor < window: quotient and remainder of factor * calls / window
  local product = factor * calls
  if product < 2 ^ 53 then
    local rest = math.fmod(product, window)
    return (product - rest) / window, rest
  end
  local quotient, rest, digit_value = 0, 0, 32768 * 32768 * 32768
  while digit_value >= 1 do
    local digit = math.fmod(math.floor(calls / digit_value), 32768)
    local sum = rest * 32768 + factor * digit
    rest = math.fmod(sum, window)
    quotient = quotient * 32768 + (sum - rest) / window
    digit_value = digit_value / 32768
  end
  return quotient, rest
end

local function refill(owed, part, elapsed, calls, window)
  local rest = math.fmod(elapsed, window)
  local back = (elapsed - rest) / window * calls
  if back > owed then return 0, 0 end
  local more, less = multiply_divide(rest, calls, window)
  owed, part = owed - back - more, part - less
  if part < 0 then owed, part = owed - 1, part + window end
  if owed < 0 then return 0, 0 end
  return owed, part
end

local function debt_of(tenant, start, calls, window, burst)
  local owed = get(tenant, 'rn')
  if not owed then  -- not known in this epoch: as if nothing had been left at its start
    return refill(burst, 0, math.max(0, now - start), calls, window)
  end
  local old_calls, old_window = get(tenant, 'rc'), get(tenant, 'rw')
  local part
  owed, part = refill(owed, get(tenant, 'rf'), math.max(0, now - get(tenant, 'rl')), old_calls, old_window)
  if old_calls ~= calls or old_window ~= window then
    if part > 0 then owed, part = owed + 1, 0 end
  end
  if owed >= burst then owed, part = burst, 0 end
  return owed, part
end

-- Caps

-- Enters the window that `now` lies in. False: the host's idea of it ([from, till)) is not the server's.
local function enter(tenant, mark, limit, from, till)
  if limit < 0 then return true end
  local start, stop = get(tenant, mark .. 's'), get(tenant, mark .. 'e')
  local fits = from <= now and now < till
  if start and start - STEP_US <= now and now < stop then
    local is_moved = fits and now >= start and from ~= start  -- another zone
    if not is_moved then return true end
  elseif not fits then
    return false
  end
  set(tenant, mark .. 'f', (start and now >= stop and from >= stop) and 1 or 0)
  set(tenant, mark .. 's', from)
  set(tenant, mark .. 'e', till)
  set(tenant, mark .. 'u', 0)
  for name in pairs(tenant.fields) do
    if string.sub(name, 1, 2) == mark .. ':' then tenant.changed[name] = true end
  end
  for name in pairs(tenant.changed) do
    if string.sub(name, 1, 2) == mark .. ':' then tenant.fields[name] = nil end
  end
  return true
end

local function note_missing(tenant, hosts, mark, limit, missing)
  if limit < 0 or tenant.fields[mark .. 'f'] == '1' then return end
  for name, one in pairs(hosts) do
    local must = name == host or (one.state == 'm' and one.expires > now)
    if must and not tenant.fields[mark .. ':' .. name] then missing[name] = true end
  end
end

local function use(tenant, mark, limit, calls)
  if limit < 0 or calls == 0 then return end
  set(tenant, mark .. 'u', get(tenant, mark .. 'u') + calls)
  set(tenant, mark .. ':' .. host, (get(tenant, mark .. ':' .. host) or 0) + calls)
end

local function cap_left(tenant, mark, limit)
  if limit < 0 then return UNLIMITED end
  return math.max(0, limit - get(tenant, mark .. 'u'))
end

local function shown(left) return left >= UNLIMITED and -1 or left end

local function ask()
  local start, hosts, trouble = verify()
  if trouble then return {trouble} end
  local number = {}
  for at = 5, #ARGV do number[at - 4] = tonumber(ARGV[at]) end
  local need, slots_need, spare, spare_slots, is_holding_back, concurrency, calls, window, burst, ttl,
    day_limit, day_from, day_till, month_limit, month_from, month_till, leases_slots = unpack(number)
  local is_capped = day_limit >= 0 or month_limit >= 0
  if now < start + SETTLE_US and (is_capped or concurrency >= 0) then return {'SETTLING'} end
  local tenant = open_tenant()
  if not enter(tenant, 'd', day_limit, day_from, day_till) then return {'WINDOW', whole(now)} end
  if not enter(tenant, 'm', month_limit, month_from, month_till) then return {'WINDOW', whole(now)} end
  local function bounds(mark, limit)
    if limit < 0 then return '0', '0' end
    return tenant.fields[mark .. 's'], tenant.fields[mark .. 'e']
  end
  local day_start, day_end = bounds('d', day_limit)
  local month_start, month_end = bounds('m', month_limit)
  local missing = {}
  note_missing(tenant, hosts, 'd', day_limit, missing)
  note_missing(tenant, hosts, 'm', month_limit, missing)
  if next(missing) then
    save(tenant)
    for name in pairs(missing) do
      if name ~= host then
        redis.call('SADD', prefix .. 'want:' .. name, string.sub(KEYS[3], #prefix + 3))
      end
    end
    return {'COUNT', missing[host] and 1 or 0, day_start, day_end, month_start, month_end, whole(now)}
  end

  -- How many pass every stage, and the first stage that stops the next one.
  local owed, part, rate_left = 0, 0, UNLIMITED
  if calls > 0 then
    owed, part = debt_of(tenant, start, calls, window, burst)
    rate_left = math.max(0, burst - owed - (part > 0 and 1 or 0))
  end
  local held = slots_of(tenant, hosts)
  local slots_left = concurrency < 0 and UNLIMITED or math.max(0, concurrency - held)
  local day_left, month_left = cap_left(tenant, 'd', day_limit), cap_left(tenant, 'm', month_limit)
  local room, code = need, ''
  local function stage(left, name)
    if left < room then room, code = left, name end
  end
  stage(need - math.max(0, slots_need - slots_left), 'concurrency_exceeded')
  stage(rate_left, 'rate_exceeded')
  stage(day_left, 'daily_cap_exceeded')
  stage(month_left, 'monthly_cap_exceeded')
  if is_holding_back == 1 and code ~= '' and code ~= 'rate_exceeded' then return {'SHORT'} end

  local slots = math.max(0, room - (need - slots_need))
  local extra, extra_slots, retry_ms = 0, 0, 0
  if code == '' then
    extra = math.min(spare, math.floor((rate_left - room) / 2), math.floor((day_left - room) / 64),
      math.floor((month_left - room) / 64))
    if extra < SPARE_CALLS_MIN or ttl == 0 then extra = 0 end
    if leases_slots == 1 then extra_slots = math.min(spare_slots, math.floor((slots_left - slots) / 16)) end
  end
  local taken = room + extra
  if calls > 0 then
    owed = owed + taken
    rate_left = rate_left - taken
    if code == 'rate_exceeded' then
      local excess = (owed - burst + 1) * window + part
      local rest = math.fmod(excess, calls)
      local wait_us = (excess - rest) / calls + (rest > 0 and 1 or 0)
      retry_ms = math.ceil(wait_us / 1000)
    end
    if taken > 0 then
      set(tenant, 'rn', owed); set(tenant, 'rf', part); set(tenant, 'rl', now)
      set(tenant, 'rc', calls); set(tenant, 'rw', window)
    end
  end
  use(tenant, 'd', day_limit, taken)
  use(tenant, 'm', month_limit, taken)
  if slots + extra_slots > 0 then
    set(tenant, 's:' .. host, session .. ' ' .. whole(own_slots(tenant) + slots + extra_slots))
  end
  if code == 'concurrency_exceeded' then retry_ms = 1000 end
  if code == 'daily_cap_exceeded' then retry_ms = math.max(1, math.ceil((tonumber(day_end) - now) / 1000)) end
  if code == 'monthly_cap_exceeded' then retry_ms = math.max(1, math.ceil((tonumber(month_end) - now) / 1000)) end
  save(tenant)
  if slots_left < UNLIMITED then slots_left = slots_left - slots - extra_slots end
  if day_left < UNLIMITED then day_left = day_left - taken end
  if month_left < UNLIMITED then month_left = month_left - taken end
  return {'OK', room, extra, slots + extra_slots, code, retry_ms, shown(rate_left), shown(day_left), shown(month_left),
    shown(slots_left), day_start, day_end, month_start, month_end, whole(now)}
end

-- What this host holds of a tenant's slots now, and calls of the windows with these starts that it will not make.
local function give()
  local _, _, trouble = verify()
  if trouble then return {trouble} end
  local tenant = open_tenant()
  local slots, calls = tonumber(ARGV[5]), tonumber(ARGV[6])
  local starts = {d = tonumber(ARGV[7]), m = tonumber(ARGV[8])}
  if slots >= 0 then
    if slots > 0 then
      set(tenant, 's:' .. host, session .. ' ' .. whole(slots))
    elseif tenant.fields['s:' .. host] then
      tenant.fields['s:' .. host] = nil
      tenant.changed['s:' .. host] = true
    end
  end
  for mark, start in pairs(starts) do
    local share = get(tenant, mark .. ':' .. host)
    if calls > 0 and share and start == get(tenant, mark .. 's') then
      local back = math.min(calls, share)
      set(tenant, mark .. ':' .. host, share - back)
      set(tenant, mark .. 'u', math.max(0, get(tenant, mark .. 'u') - back))
    end
  end
  tenant.changed.g = true  -- at least one field to write, and the expiry anew
  save(tenant)
  return {'OK'}
end

-- What this host has of a tenant's calls in its windows, by its meter and its workers. Without a meter it knows of none:
-- then only where the store has nothing of it either.
local function count()
  local _, _, trouble = verify()
  if trouble then return {trouble} end
  local tenant = open_tenant()
  for mark, at in pairs({d = 5, m = 8}) do
    local from, till, calls = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
    local start = get(tenant, mark .. 's')
    if till > 0 and not start then
      set(tenant, mark .. 's', from); set(tenant, mark .. 'e', till)
      set(tenant, mark .. 'u', 0); set(tenant, mark .. 'f', 0)
      start = from
    end
    local share = get(tenant, mark .. ':' .. host)
    if till > 0 and start == from and not (share and ARGV[11] == '1') then
      set(tenant, mark .. 'u', math.max(0, get(tenant, mark .. 'u') + calls - (share or 0)))
      set(tenant, mark .. ':' .. host, calls)
    end
  end
  save(tenant)
  return {'OK'}
end

-- A new session of `host`. Begins an epoch when the state is not the one that this server has built up.
local function register()
  local run, candidate = ARGV[5], epoch_id
  local epoch = redis.call('HMGET', KEYS[1], 'id', 'run', 'start')
  local start = tonumber(epoch[3] or '')
  local hosts = {}
  if epoch[1] and epoch[2] == run and start and start <= now then
    candidate = epoch[1]
    hosts = read_hosts()
  else
    start = now
    redis.call('DEL', KEYS[1], KEYS[2])
    redis.call('HSET', KEYS[1], 'id', candidate, 'run', run, 'start', whole(start))
  end
  local living = 0
  for name, one in pairs(hosts) do
    if one.expires > now and name ~= host then living = living + 1 end
  end
  if living >= HOSTS_MAX then return {'HOSTS'} end
  local own = hosts[host]
  local one = {session = session, expires = now + LEASE_US, state = now < start + SETTLE_US and 'm' or 'j', before = ''}
  if own then
    one.before = string.sub(own.session .. ',' .. own.before, 1, 512)
    if own.state == 'm' then one.state = 'm' end
  end
  write_host(host, one)
  return {'OK', candidate, one.state, whole(now), living + 1}
end

-- The lease of this host goes on. It may say that it has declared its slots, and that its counts are complete.
local function beat()
  local _, hosts, trouble = verify()
  if trouble then return {trouble} end
  local own, living = hosts[host], 0
  own.expires = now + LEASE_US
  if ARGV[5] == '1' then own.before = '' end
  if ARGV[6] == '1' then own.state = 'm' end
  write_host(host, own)
  for name, one in pairs(hosts) do
    if one.expires > now then
      living = living + 1
    elseif one.expires + HOUR_US < now then
      redis.call('HDEL', KEYS[2], name)
      redis.call('DEL', prefix .. 'want:' .. name)
    end
  end
  local wanted = {}
  for _, name in ipairs(redis.call('SPOP', KEYS[3], 100)) do
    local windows = redis.call('HMGET', prefix .. 't:' .. name, 'ds', 'de', 'ms', 'me')
    wanted[#wanted + 1] = {name, windows[1] or '0', windows[2] or '0', windows[3] or '0', windows[4] or '0'}
  end
  return {'OK', whole(now), living, wanted}
end

local function goodbye()
  local _, _, trouble = verify()
  if not trouble then redis.call('HDEL', KEYS[2], host) end
  return {'OK'}
end

local operations = {ask = ask, give = give, count = count, register = register, beat = beat, goodbye = goodbye}
return operations[operation]()
