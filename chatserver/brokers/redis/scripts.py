"""The Lua scripts: each is one atomic step in Redis, on keys of one channel.

A channel's keys, with the channel's name as hash tag, so that a Cluster keeps them on one node:

    …:top       "offset epoch size ttl server": the stream's top, what is kept of it (ms), and the
                process of Redis in which it was written
    …:stream    a stream whose entries are `offset-0`, with fields i (id), e (entry), t (ms)
    …:id:…      the position of the publication with this id
    …:will:…    the position of the last will of this client
    …:present   a hash: client → "process length-of-info info entry-of-last-will"

What is announced is "+ info", "- info", or publications without anything between them, each as
"offset epoch length-of-id length-of-entry id entry".
"""

import hashlib
from typing import NamedTuple

from chatserver.rules import Rules

__all__ = ["Script", "scripts"]

#: Bytes of publications that are announced together, about: a subscriber's buffer is limited.
MOST_ANNOUNCED = 64 * 1024
#: Milliseconds for which a stream's top is remembered after its last use, at least.
TOP_TTL = 24 * 3600 * 1000


class Script(NamedTuple):
    """A script, and the SHA1 by which it is called."""

    text: str
    sha: bytes


#: Milliseconds, by the clock of Redis.
NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""

#: A top that is missing or can't be read was evicted, flushed, or written by others. It says what
#: is kept of the channel, too, so that those who don't know its rules can publish to it.
#:
#: If it was written in another process of Redis, this one began with what a replica had got, or
#: with a snapshot, unless it keeps what the other had written. Nobody can know what is missing, so
#: that a new epoch begins. The offsets go on, and what is there can still be read.
#:
#: Numbers that are only passed on stay the texts that they are: to format one costs as much as to
#: read a key.
TOP = f"""
local server, keeps = ARGV[#ARGV - 1], ARGV[#ARGV] == '1'

local function write_top(key, offset, epoch, size, ttl)
    local position = offset .. ' ' .. epoch
    redis.call('SET', key, position .. ' ' .. size .. ' ' .. ttl .. ' ' .. server,
        'PX', math.max(tonumber(ttl), {TOP_TTL}))
    return position
end

-- As Redis writes a number itself, which is what its commands take; 2^53 has 16 digits.
local function is_number(text)
    return #text < 16 and (text == '0' or string.sub(text, 1, 1) ~= '0')
end

local function read_top(key, new_epoch)
    local top = redis.call('GET', key)
    if not top then return nil end
    local offset, epoch, size, ttl, written_in =
        string.match(top, '^(%d+) (%w+) (%d+) (%d+) (%w+)$')
    if not (offset and is_number(offset) and is_number(size) and is_number(ttl)) then
        return nil
    end
    if written_in ~= server then
        if not keeps then epoch = new_epoch end
        write_top(key, offset, epoch, size, ttl)
    end
    return offset, epoch, size, ttl
end

-- What is kept: what was asked for, or as before, or as of any channel.
local function kept(asked_size, asked_ttl, size, ttl)
    if asked_size ~= '' then return asked_size, asked_ttl end
    return size or '{Rules().history_size}', ttl or '{Rules().history_ttl * 1000:.0f}'
end
"""

# What runs for each publication has few calls of Redis, and formats one number: of a script's time,
# most goes there. A table for each draft would cost as much as its `XADD`.
PUBLISH = f"""
local call, format, at = redis.call, string.format, string.format('%.0f', now)

local function append(stream_key, number, size, id, entry)
    local added = redis.pcall('XADD', stream_key, 'MAXLEN', size, number .. '-0',
        'i', id, 'e', entry, 't', at)
    return type(added) ~= 'table' or not added.err, added
end

-- Publishes drafts. For each, `id_keys` holds one key after the first `skipped`, and `fields` its
-- id, entry, keep and id_ttl. The answers are the position of each, or the error.
local function publish(top_key, stream_key, a, id_keys, fields, skipped)
    local number, epoch, size, ttl = read_top(top_key, a.epoch)
    size, ttl = kept(a.size, a.ttl, size, ttl)
    local stores = tonumber(size) > 0 and tonumber(ttl) > 0
    if not number then
        call('DEL', stream_key)
        number, epoch = '0', a.epoch
    end
    local offset = tonumber(number)

    local texts, length = {{}}, 0
    local function announce()
        if length > 0 then call('PUBLISH', a.news, table.concat(texts)) end
        texts, length = {{}}, 0
    end

    local function publish_one(id_key, id, entry, keep, id_ttl)
        local announced, position = '0', number .. ' ' .. epoch
        if keep then
            announced = format('%.0f', offset + 1)
            position = announced .. ' ' .. epoch
        end
        if not call('SET', id_key, position, 'NX', 'PX', id_ttl) then
            -- A key of another type is foreign; it must not end the script, for others are in here.
            local known = redis.pcall('GET', id_key)
            if type(known) == 'string' and string.match(known, '^%d+ %w+$') then return known end
            call('SET', id_key, position, 'PX', id_ttl)
        end
        if keep and stores then
            local done, answer = append(stream_key, announced, size, id, entry)
            if not done and string.find(answer.err, 'equal or smaller') then
                -- Somebody has added entries by hand.
                call('DEL', stream_key)
                offset, number, epoch = 0, '0', a.epoch
                announced, position = '1', '1 ' .. epoch
                call('SET', id_key, position, 'PX', id_ttl)
                done, answer = append(stream_key, announced, size, id, entry)
            end
            if not done then
                call('DEL', id_key)
                return answer
            end
        end
        if keep then offset, number = offset + 1, announced end
        local n = #texts
        texts[n + 1] = announced .. ' ' .. epoch .. ' ' .. #id .. ' ' .. #entry .. ' '
        texts[n + 2], texts[n + 3] = id, entry
        length = length + #entry
        if length > {MOST_ANNOUNCED} then announce() end
        return position
    end

    local answers, f = {{}}, 1
    for i = skipped + 1, #id_keys do
        answers[i - skipped] = publish_one(
            id_keys[i], fields[f], fields[f + 1], fields[f + 2] == '1', fields[f + 3])
        f = f + 4
    end
    if stores then call('PEXPIRE', stream_key, ttl) end
    write_top(top_key, number, epoch, size, ttl)
    announce()
    return answers
end
"""

APPEND = """
return publish(KEYS[1], KEYS[2], {
    news = ARGV[#ARGV - 5], epoch = ARGV[#ARGV - 4], size = ARGV[#ARGV - 3], ttl = ARGV[#ARGV - 2]},
    KEYS, ARGV, 2)
"""

# A stream has gone back if it doesn't reach the known offset, or has something else there: Redis
# was replaced by a replica that had not got all, and to which others have published since.
TOPS = """
local function has_gone_back(stream_key, offset, known, id)
    if tonumber(offset) < known then return true end
    if id == '' then return false end
    local number = string.format('%.0f-0', known)
    local found = redis.call('XRANGE', stream_key, number, number)[1]
    return found and found[2][2] ~= id
end

local offset, epoch, size, ttl = read_top(KEYS[1], ARGV[1])
size, ttl = kept(ARGV[2], ARGV[3], size, ttl)
if not offset or
    (epoch == ARGV[4] and has_gone_back(KEYS[2], offset, tonumber(ARGV[5]), ARGV[6])) then
    redis.call('DEL', KEYS[2])
    offset, epoch = '0', ARGV[1]
end
return write_top(KEYS[1], offset, epoch, size, ttl)
"""

READ = """
local offset, epoch = read_top(KEYS[1], ARGV[1])
if not offset then return {'0 ' .. ARGV[1], '0', {}} end
local position = offset .. ' ' .. epoch
if ARGV[6] == '0' or (ARGV[2] ~= '' and ARGV[2] ~= epoch) then return {position, '0', {}} end
return {position, string.format('%.0f', now),
    redis.call(ARGV[3], KEYS[2], ARGV[4], ARGV[5], 'COUNT', ARGV[6])}
"""

ENTER = """
local known = redis.call('HEXISTS', KEYS[1], ARGV[1])
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
if known == 0 and ARGV[3] ~= '' then redis.call('PUBLISH', ARGV[3], ARGV[4]) end
"""

# Answers with the process that held the entry.
LEAVE = """
local value = redis.call('HGET', KEYS[1], ARGV[1])
if not value then return '' end
local process, length, rest = string.match(value, '^(%w+) (%d+) (.*)$')
if not process then
    redis.call('HDEL', KEYS[1], ARGV[1])
    return ''
end
if ARGV[2] ~= '' and ARGV[2] ~= process then return '' end
redis.call('HDEL', KEYS[1], ARGV[1])
local will = string.sub(rest, length + 1)
if ARGV[3] == '1' then
    redis.call('PUBLISH', ARGV[5], '- ' .. string.sub(rest, 1, length))
end
if ARGV[4] == '1' and will ~= '' then
    local answer = publish(KEYS[2], KEYS[3],
        {news = ARGV[5], epoch = ARGV[6], size = ARGV[7], ttl = ARGV[8]},
        {KEYS[4]}, {ARGV[1], will, '1', ARGV[9]}, 0)[1]
    if type(answer) == 'table' and answer.err then return answer end
end
return process
"""

# Leases: a sorted set of processes by the time at which they expire. One that was taken stands in
# there as "!process" until its entries are removed.
RENEW = """
if ARGV[3] == '0' and not redis.call('ZSCORE', KEYS[1], ARGV[1]) then return 0 end
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
return 1
"""

EXPIRED = """
local found = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 100)
local taken = {}
for i, member in ipairs(found) do
    redis.call('ZREM', KEYS[1], member)
    local process = string.match(member, '^!?(%w+)$')
    if process then
        redis.call('ZADD', KEYS[1], now + ARGV[1], '!' .. process)
        taken[#taken + 1] = process
    end
end
return taken
"""

ALIVE = """
local alive = {}
for i, process in ipairs(ARGV) do
    local expires = redis.call('ZSCORE', KEYS[1], process)
    if expires and tonumber(expires) > now then alive[#alive + 1] = process end
end
return alive
"""

TEXTS = {
    "append": NOW + TOP + PUBLISH + APPEND,
    "tops": TOP + TOPS,
    "read": NOW + TOP + READ,
    "enter": ENTER,
    "leave": NOW + TOP + PUBLISH + LEAVE,
    "renew": NOW + RENEW,
    "expired": NOW + EXPIRED,
    "alive": NOW + ALIVE,
}


def scripts(*, sharded: bool) -> dict[str, Script]:
    """The scripts by name.

    Args:
        sharded: Announce within the shard of a Cluster only (SPUBLISH).
    """
    made = {}
    for name, text in TEXTS.items():
        if sharded:
            text = text.replace("'PUBLISH'", "'SPUBLISH'")
        made[name] = Script(text, hashlib.sha1(text.encode()).hexdigest().encode())
    return made
