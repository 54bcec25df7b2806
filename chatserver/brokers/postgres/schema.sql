-- The schema of PostgresBroker. The broker creates it, and brings an older one up to date.
--
-- For applications there is one function, chatserver.publish(channel, data, id). All else is the
-- broker's own. Names and data are bytes (UTF-8 where they are text), because a PostgreSQL text
-- can't hold every text of Python, and because the database may have another encoding.
--
-- The broker writes another name for "chatserver" if it is told to. Everything here can be run
-- again: it changes nothing that is there already, except that functions are replaced.

-- From version 1: a publication is stored as it is announced, and keys are given, because PostgreSQL
-- prepares a generated column anew in each statement.
DO $$
BEGIN
    IF to_regprocedure('chatserver.version()') IS NULL THEN
        RETURN;
    END IF;
    IF chatserver.version() <> 1 THEN
        RETURN;
    END IF;
    DROP FUNCTION chatserver.append;
    DROP FUNCTION chatserver.read;
    DROP FUNCTION chatserver.read_spans;
    ALTER TABLE chatserver.channel ALTER COLUMN key DROP EXPRESSION;
    ALTER TABLE chatserver.publication ADD COLUMN content text;
    UPDATE chatserver.publication SET content = '["' || kind::text || '",'
        || chatserver.quoted(data) || ',' || chatserver.quoted(info) || ','
        || chatserver.quoted(skip) || ',true]';
    ALTER TABLE chatserver.publication ALTER COLUMN content SET NOT NULL,
        DROP COLUMN kind, DROP COLUMN data, DROP COLUMN info, DROP COLUMN skip;
END
$$;

-- A stream. Whoever appends to it locks its row until the commit, so offsets have no gaps.
CREATE TABLE IF NOT EXISTS chatserver.channel (
    key bytea PRIMARY KEY,                      -- SHA-256 of the name
    id bigint NOT NULL UNIQUE GENERATED ALWAYS AS IDENTITY,
    name bytea NOT NULL,                        -- may be too long for an index
    epoch text NOT NULL,
    timeline text NOT NULL,                     -- of the server when the epoch began
    top bigint NOT NULL DEFAULT 0 CHECK (top >= 0),
    -- Publications in the history at most, and seconds for which they are kept at most.
    size bigint NOT NULL DEFAULT 100 CHECK (size >= 0),
    ttl double precision NOT NULL DEFAULT 300 CHECK (ttl BETWEEN 0 AND 1e10),
    used timestamptz NOT NULL,                  -- when it was last published to, or followed
    due timestamptz NOT NULL                    -- when there may be something to tidy up
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX IF NOT EXISTS channel_due ON chatserver.channel (due);

CREATE TABLE IF NOT EXISTS chatserver.publication (
    channel bigint NOT NULL,
    position bigint NOT NULL,
    time timestamptz NOT NULL,
    content text NOT NULL,                      -- as it is announced; see `content`
    id bytea,                                   -- looked for if it may come again
    PRIMARY KEY (channel, position)
) WITH (autovacuum_vacuum_scale_factor = 0.05);

-- What was published with an id that is remembered for longer than any publication is kept.
CREATE TABLE IF NOT EXISTS chatserver.publication_id (
    channel bigint NOT NULL,
    id bytea NOT NULL,
    position bigint NOT NULL,
    expires timestamptz NOT NULL,
    PRIMARY KEY (channel, id)
) WITH (autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX IF NOT EXISTS publication_id_expires ON chatserver.publication_id (expires);

CREATE TABLE IF NOT EXISTS chatserver.lease (
    process text PRIMARY KEY,
    expires timestamptz NOT NULL,
    taken boolean NOT NULL DEFAULT false        -- by one who removes the entries of the process
);

CREATE TABLE IF NOT EXISTS chatserver.presence (
    channel bytea NOT NULL,                     -- SHA-256 of the channel's name
    client bytea NOT NULL,                      -- `short` of its identifier
    name bytea NOT NULL,
    process text NOT NULL,
    info bytea NOT NULL,                        -- the client, as JSON
    will_kind "char" CHECK (will_kind IN ('t', 'b', 'j')),
    will bytea,
    PRIMARY KEY (channel, client)
) WITH (autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX IF NOT EXISTS presence_process ON chatserver.presence (process);

-- What an open transaction has published: appended when it commits. No row outlives that.
CREATE TABLE IF NOT EXISTS chatserver.outbox (
    transaction xid8 NOT NULL DEFAULT pg_current_xact_id(),
    number bigint GENERATED ALWAYS AS IDENTITY,
    name bytea NOT NULL,
    kind "char" NOT NULL,
    data bytea NOT NULL,
    id bytea,
    PRIMARY KEY (transaction, number)
);

-- Rises when a server becomes the primary: it may lack what the one before it had acknowledged.
CREATE OR REPLACE FUNCTION chatserver.timeline() RETURNS text LANGUAGE sql STABLE AS $$
    SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)
$$;

CREATE OR REPLACE FUNCTION chatserver.new_epoch() RETURNS text LANGUAGE sql VOLATILE AS $$
    SELECT left(gen_random_uuid()::text, 8)
$$;

-- An identifier as it is, or the SHA-256 of one that may be too long for an index.
CREATE OR REPLACE FUNCTION chatserver.short(name bytea) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN octet_length(name) < 32 THEN name ELSE sha256(name) END
$$;

-- As a value of JSON; null for NULL.
CREATE OR REPLACE FUNCTION chatserver.quoted(value bytea) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce('"' || translate(encode(value, 'base64'), E'\n', '') || '"', 'null')
$$;

-- What a publication holds, as a JSON array in ASCII: its kind (text, bytes or JSON), the data, the
-- publisher as JSON, the client that doesn't get it, and whether it is kept.
CREATE OR REPLACE FUNCTION chatserver.content(kind text, data bytea) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT '["' || kind || '",' || chatserver.quoted(data) || ',null,null,true]'
$$;

-- Announce events, a JSON array in ASCII, to all processes when the transaction commits. What
-- doesn't fit into one notification comes in parts "serial:part:of:...". The serial makes them
-- different from each other: of equal notifications in a transaction only one is sent.
CREATE OR REPLACE FUNCTION chatserver.announce(events text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    most CONSTANT integer := 7900;
    parts integer := (octet_length(events) + most - 1) / most;
    bytes bytea;
    serial text;
BEGIN
    IF parts <= 1 THEN
        PERFORM pg_notify('chatserver', events);
        RETURN;
    END IF;
    bytes := convert_to(events, 'SQL_ASCII');  -- a part of a text is looked for from its beginning
    serial := left(gen_random_uuid()::text, 8);
    FOR part IN 1..parts LOOP
        PERFORM pg_notify('chatserver', serial || ':' || part || ':' || parts || ':'
            || convert_from(substr(bytes, (part - 1) * most + 1, most), 'SQL_ASCII'));
    END LOOP;
END
$$;

-- OFFSET 0, here and below, makes PostgreSQL look up each row by an index. Else it might read tables
-- that were small when it made the plan, and are not any more.

-- Where streams stand; those that don't exist begin. A stream that has gone back begins a new
-- epoch: the server has changed its timeline, or a position that was known is beyond the top.
-- sizes and ttls say what is kept of each from now on; NULL leaves that as it is.
CREATE OR REPLACE FUNCTION chatserver.stand(
    names bytea[], known text[], positions bigint[], sizes bigint[], ttls double precision[]
) RETURNS TABLE (epoch text, top bigint) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    keys bytea[];
    new_sizes bigint[];
    new_ttls double precision[];
    gone_back boolean[];
BEGIN
    SELECT array_agg(found.key), array_agg(found.size), array_agg(found.ttl),
        array_agg(found.gone_back)
    INTO keys, new_sizes, new_ttls, gone_back FROM (
        SELECT stream.key, stream.gone_back, given.size, given.ttl
        FROM (
            SELECT * FROM unnest(names, known, positions, sizes, ttls)
                AS one (name, epoch, position, size, ttl)
            ORDER BY sha256(name)
        ) AS given
        CROSS JOIN LATERAL (
            SELECT key, timeline <> chatserver.timeline()
                OR (channel.epoch = given.epoch AND top < given.position) AS gone_back
            FROM chatserver.channel
            WHERE key = sha256(given.name) AND (
                used < clock_timestamp() - interval '10 minutes'
                OR timeline <> chatserver.timeline()
                OR (channel.epoch = given.epoch AND top < given.position)
                OR channel.size <> given.size OR channel.ttl <> given.ttl
            )
            FOR UPDATE
        ) AS stream
    ) AS found;
    UPDATE chatserver.channel
    SET used = clock_timestamp(), timeline = chatserver.timeline(),
        size = coalesce(new_sizes[array_position(keys, key)], size),
        ttl = coalesce(new_ttls[array_position(keys, key)], ttl),
        epoch = CASE WHEN gone_back[array_position(keys, key)] THEN chatserver.new_epoch()
            ELSE epoch END
    WHERE key = ANY (keys);
    INSERT INTO chatserver.channel (key, name, epoch, timeline, size, ttl, used, due)
    SELECT DISTINCT ON (sha256(given.name)) sha256(given.name), given.name, chatserver.new_epoch(),
        chatserver.timeline(), coalesce(given.size, 100), coalesce(given.ttl, 300),
        clock_timestamp(), clock_timestamp() + interval '1 hour'
    FROM unnest(names, sizes, ttls) AS given (name, size, ttl)
    WHERE (SELECT true FROM chatserver.channel WHERE key = sha256(given.name)) IS NULL
    ORDER BY sha256(given.name)
    ON CONFLICT DO NOTHING;
    RETURN QUERY
    SELECT stream.epoch, stream.top
    FROM unnest(names) WITH ORDINALITY AS given (name, number)
    CROSS JOIN LATERAL (
        SELECT epoch, top FROM chatserver.channel WHERE key = sha256(given.name) OFFSET 0
    ) AS stream
    ORDER BY given.number;
END
$$;

-- Append publications to streams, and announce them: all of them, or none.
--
-- keys and names are the streams, each once, in the order of the keys, with what is kept of them;
-- NULL leaves that as it is. The other arrays have one element for each publication: streams are
-- indexes of names, and counts say how many of the stream are kept up to this one. What is not to be
-- kept gets no offset, and is only announced. An id is in a stream once. It is remembered for the
-- seconds of id_ttl; if that is NULL, it is looked for among the publications of the last minute, and
-- only if may_be_there: if some may come again. No id_ttls at all means NULL for each, and no keeps
-- that all are kept.
--
-- Returns the epoch of each stream and the position of each publication.
CREATE OR REPLACE FUNCTION chatserver.append(
    keys bytea[], names bytea[], sizes bigint[], ttls double precision[],
    streams integer[], counts integer[], ids bytea[], id_ttls double precision[],
    contents text[], keeps boolean[], may_be_there boolean,
    OUT epochs text[], OUT positions bigint[]
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    places tid[];
    channels bigint[];
    tops bigint[];
    has_foreign boolean;
    now timestamptz;
    known bigint[];
    all_kept CONSTANT boolean := cardinality(keeps) = 0;
    -- What fits into a few notifications is announced whole; of the rest, the positions are.
    is_light CONSTANT boolean := pg_column_size(contents) + pg_column_size(names) <= 100000;
    events text;
BEGIN
    LOOP
        -- All lock streams in the same order, so no two wait for each other.
        SELECT array_agg(place), array_agg(id), array_agg(top), array_agg(epoch), bool_or(is_foreign)
        INTO places, channels, tops, epochs, has_foreign FROM (
            SELECT ctid AS place, id, top, CASE WHEN timeline = chatserver.timeline() THEN epoch
                ELSE chatserver.new_epoch() END AS epoch,
                EXISTS (
                    SELECT FROM chatserver.publication
                    WHERE publication.channel = channel.id AND publication.position > top
                ) AS is_foreign
            FROM chatserver.channel WHERE key = ANY (keys)
                AND (SELECT count(*) FROM chatserver.channel WHERE key = ANY (keys))
                    = cardinality(keys)
            ORDER BY key FOR UPDATE
        ) AS stream;
        EXIT WHEN cardinality(channels) = cardinality(keys);
        -- Some are new, or an idle one was just removed.
        INSERT INTO chatserver.channel (key, name, epoch, timeline, used, due)
        SELECT key, name, chatserver.new_epoch(), chatserver.timeline(),
            clock_timestamp(), clock_timestamp() + interval '1 minute'
        FROM unnest(keys, names) AS given (key, name) ORDER BY key
        ON CONFLICT DO NOTHING;
    END LOOP;
    IF has_foreign THEN  -- somebody else has written rows where the next ones belong
        DELETE FROM chatserver.publication USING unnest(channels, tops) AS stream (id, top)
        WHERE channel = stream.id AND position > stream.top;
    END IF;
    now := clock_timestamp();
    IF may_be_there OR cardinality(id_ttls) > 0 THEN
        SELECT array_agg(known ORDER BY number), array_agg(count ORDER BY number)
        INTO known, counts FROM (
            SELECT number, known, count(*) FILTER (WHERE known IS NULL AND (all_kept OR keep))
                OVER (PARTITION BY stream ORDER BY number) AS count
            FROM (
                SELECT given.number, given.stream, given.keep,
                    coalesce(remembered.position, recent.position) AS known
                FROM unnest(streams, ids, id_ttls, keeps)
                    WITH ORDINALITY AS given (stream, id, id_ttl, keep, number)
                LEFT JOIN LATERAL (
                    SELECT position, expires FROM chatserver.publication_id
                    WHERE given.id_ttl IS NOT NULL AND channel = channels[given.stream]
                        AND id = given.id
                    OFFSET 0
                ) AS remembered ON remembered.expires > now
                LEFT JOIN (
                    SELECT channel, id, position FROM chatserver.publication
                    WHERE may_be_there AND channel = ANY (channels) AND id = ANY (ids)
                        AND time > now - interval '1 minute'
                    OFFSET 0
                ) AS recent ON recent.channel = channels[given.stream] AND recent.id = given.id
            ) AS looked_for
        ) AS counted;
    END IF;
    WITH appended AS (
        INSERT INTO chatserver.publication (channel, position, time, content, id)
        SELECT channels[stream], tops[stream] + count, now, content,
            CASE WHEN id_ttl IS NULL THEN id END
        FROM unnest(streams, counts, ids, id_ttls, contents, keeps, known)
            AS given (stream, count, id, id_ttl, content, keep, known)
        WHERE (all_kept OR keep) AND known IS NULL
    ), added AS MATERIALIZED (
        SELECT stream, count(*) FILTER (WHERE all_kept OR keep),
            string_agg(content, ',' ORDER BY number)
                FILTER (WHERE is_light OR NOT (all_kept OR keep)) AS contents
        FROM unnest(streams, contents, keeps, known)
            WITH ORDINALITY AS given (stream, content, keep, known, number)
        WHERE known IS NULL GROUP BY stream
    ), moved AS (
        UPDATE chatserver.channel AS stream
        SET top = stream.top + added.count, used = now,
            epoch = epochs[added.stream], timeline = chatserver.timeline(),
            size = coalesce(sizes[added.stream], stream.size),
            ttl = coalesce(ttls[added.stream], stream.ttl),
            due = least(stream.due, now + interval '1 minute')
        FROM added WHERE stream.ctid = places[added.stream]
    )
    SELECT ARRAY(
        SELECT coalesce(known, tops[stream] + count)
        FROM unnest(streams, counts, known) AS given (stream, count, known)
    ), string_agg(event, ',')
    INTO positions, events
    FROM (
        SELECT chatserver.quoted(names[stream]) || ',"' || epochs[stream] || '",'
            || tops[stream] + 1 AS head, tops[stream] + count AS last, count, contents FROM added
    ) AS stream CROSS JOIN LATERAL (
        SELECT '["p",' || head || ',[' || contents || ']]' AS event WHERE contents IS NOT NULL
        UNION ALL
        SELECT '["r",' || head || ',' || last || ']' WHERE count > 0 AND NOT is_light
    ) AS event;
    IF cardinality(id_ttls) > 0 THEN
        INSERT INTO chatserver.publication_id (channel, id, position, expires)
        SELECT channels[stream], id, position, now + make_interval(secs => id_ttl)
        FROM unnest(streams, ids, id_ttls, positions, known)
            AS given (stream, id, id_ttl, position, known)
        WHERE known IS NULL AND id IS NOT NULL AND id_ttl IS NOT NULL
        ON CONFLICT (channel, id)
            DO UPDATE SET position = excluded.position, expires = excluded.expires;
    END IF;
    IF events IS NOT NULL THEN
        PERFORM chatserver.announce('[' || events || ']');
    END IF;
END
$$;

-- The same for publications that name their streams themselves, with ids and without publishers.
CREATE OR REPLACE FUNCTION chatserver.append_each(
    names bytea[], sizes bigint[], ttls double precision[], ids bytea[], kinds text[],
    contents bytea[]
) RETURNS void LANGUAGE sql AS $$
    WITH draft AS (
        SELECT given.*, row_number() OVER (PARTITION BY name ORDER BY number) AS count
        FROM unnest(names, sizes, ttls, ids, kinds, contents)
            WITH ORDINALITY AS given (name, size, ttl, id, kind, data, number)
    ), stream AS (
        SELECT name, max(size) AS size, max(ttl) AS ttl,
            row_number() OVER (ORDER BY sha256(name)) AS index
        FROM draft GROUP BY name
    )
    SELECT chatserver.append(
        (SELECT array_agg(sha256(name) ORDER BY index) FROM stream),
        (SELECT array_agg(name ORDER BY index) FROM stream),
        (SELECT array_agg(size ORDER BY index) FROM stream),
        (SELECT array_agg(ttl ORDER BY index) FROM stream),
        array_agg(index::integer ORDER BY number), array_agg(count::integer ORDER BY number),
        array_agg(id ORDER BY number), array_agg(300::double precision),
        array_agg(chatserver.content(kind, data) ORDER BY number), '{}', false
    )
    FROM draft JOIN stream USING (name)
$$;

-- What the transaction has published is appended when it commits: streams are locked for that
-- moment only, however long the transaction takes. The first row's trigger sends all.
CREATE OR REPLACE FUNCTION chatserver.send_outbox() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off
AS $$
DECLARE
    names bytea[];
    ids bytea[];
    kinds text[];
    contents bytea[];
BEGIN
    WITH sent AS (
        DELETE FROM chatserver.outbox WHERE transaction = pg_current_xact_id()
        RETURNING number, name, kind::text, data, id
    ), first AS (
        SELECT DISTINCT ON (name, id, CASE WHEN id IS NULL THEN number END) * FROM sent
        ORDER BY name, id, CASE WHEN id IS NULL THEN number END, number
    )
    SELECT array_agg(name ORDER BY number), array_agg(id ORDER BY number),
        array_agg(kind ORDER BY number), array_agg(data ORDER BY number)
    INTO names, ids, kinds, contents FROM first;
    IF names IS NOT NULL THEN
        PERFORM chatserver.append_each(names, '{}', '{}', ids, kinds, contents);
    END IF;
    RETURN NULL;
END
$$;
DROP TRIGGER IF EXISTS send ON chatserver.outbox;
CREATE CONSTRAINT TRIGGER send AFTER INSERT ON chatserver.outbox
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION chatserver.send_outbox();

CREATE OR REPLACE FUNCTION chatserver.send(channel text, kind "char", data text, id text)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF channel IS NULL OR channel = '' OR data IS NULL THEN
        RAISE invalid_parameter_value USING MESSAGE = 'publish needs a channel and data';
    END IF;
    INSERT INTO chatserver.outbox (name, kind, data, id) VALUES (
        convert_to($1, 'UTF8'), $2, convert_to($3, 'UTF8'),
        chatserver.short(convert_to($4, 'UTF8'))
    );
END
$$;

-- Publish in a transaction: it is delivered when that is committed, and never if it is rolled
-- back. A second one with the same id within five minutes delivers nothing. Text is sent as it
-- is; jsonb is sent as JSON.
--
-- A role that is not the broker's needs: GRANT USAGE ON SCHEMA chatserver TO it.
CREATE OR REPLACE FUNCTION chatserver.publish(channel text, data text, id text DEFAULT NULL)
RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT chatserver.send($1, 't', $2, $3)
$$;
CREATE OR REPLACE FUNCTION chatserver.publish(channel text, data jsonb, id text DEFAULT NULL)
RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT chatserver.send($1, 'j', $2::text, $3)
$$;

-- Read histories: for each name the publications after (before, if reverse) a position, and in
-- any case the stream's epoch and top. A stream that doesn't exist has no row.
CREATE OR REPLACE FUNCTION chatserver.read(
    names bytea[], ttls double precision[], epochs text[], positions bigint[],
    limits bigint[], reverses boolean[]
) RETURNS TABLE (
    number bigint, epoch text, top bigint, "position" bigint, content text
) LANGUAGE sql AS $$
    SELECT given.number, channel.epoch, channel.top, found.position, found.content
    FROM unnest(names, ttls, epochs, positions, limits, reverses)
        WITH ORDINALITY AS given (name, ttl, epoch, position, most, reverse, number)
    CROSS JOIN LATERAL (
        SELECT id, epoch, top, size FROM chatserver.channel WHERE key = sha256(given.name) OFFSET 0
    ) AS channel
    LEFT JOIN LATERAL (
        (
            SELECT publication.* FROM chatserver.publication
            WHERE publication.channel = channel.id AND NOT given.reverse
                AND publication.position > channel.top - channel.size
                AND publication.position > coalesce(given.position, 0)
                AND publication.position <= channel.top
                AND publication.time > clock_timestamp() - make_interval(secs => given.ttl)
            ORDER BY publication.position LIMIT given.most
        ) UNION ALL (
            SELECT publication.* FROM chatserver.publication
            WHERE publication.channel = channel.id AND given.reverse
                AND publication.position > channel.top - channel.size
                AND publication.position < coalesce(given.position, channel.top + 1)
                AND publication.position <= channel.top
                AND publication.time > clock_timestamp() - make_interval(secs => given.ttl)
            ORDER BY publication.position DESC LIMIT given.most
        )
    ) AS found ON given.epoch IS NULL OR given.epoch = channel.epoch
    ORDER BY given.number, CASE WHEN given.reverse THEN -found.position ELSE found.position END
$$;

-- Read what announcements have only named: positions of streams, in the order of the arguments.
CREATE OR REPLACE FUNCTION chatserver.read_spans(
    names bytea[], epochs text[], firsts bigint[], lasts bigint[]
) RETURNS TABLE (
    number bigint, "position" bigint, content text
) LANGUAGE sql AS $$
    SELECT given.number, publication.position, publication.content
    FROM unnest(names, epochs, firsts, lasts)
        WITH ORDINALITY AS given (name, epoch, first, last, number)
    CROSS JOIN LATERAL (
        SELECT id FROM chatserver.channel
        WHERE key = sha256(given.name) AND channel.epoch = given.epoch OFFSET 0
    ) AS channel
    CROSS JOIN LATERAL (
        SELECT * FROM chatserver.publication
        WHERE publication.channel = channel.id
            AND publication.position BETWEEN given.first AND given.last
        OFFSET 0
    ) AS publication
    ORDER BY given.number, publication.position
$$;

-- Change presence, in the order of the arrays: clients enter, or leave.
CREATE OR REPLACE FUNCTION chatserver.enter_and_leave(
    enters boolean[], names bytea[], clients bytea[], processes text[], announces boolean[],
    infos bytea[], will_kinds text[], wills bytea[], deads boolean[],
    sizes bigint[], ttls double precision[]
) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    change record;
    info bytea;
    will_kind text;
    will bytea;
    is_new boolean;
    events text[] := '{}';
    last integer[] := '{}';
    last_kinds text[] := '{}';
    last_wills bytea[] := '{}';
BEGIN
    -- An entry without a lease would stay for ever. One that is made here counts as expired and
    -- taken: its process is told that it holds none, and whoever looks removes the entry.
    INSERT INTO chatserver.lease (process, expires, taken)
    SELECT DISTINCT given.process, clock_timestamp(), true
    FROM unnest(enters, processes) AS given (enters, process) WHERE given.enters
    ORDER BY given.process ON CONFLICT DO NOTHING;
    PERFORM FROM chatserver.lease WHERE process = ANY (processes) ORDER BY process FOR KEY SHARE;
    FOR change IN
        SELECT * FROM unnest(
            enters, names, clients, processes, announces, infos, will_kinds, wills, deads,
            sizes, ttls
        ) WITH ORDINALITY AS given (
            enters, name, client, process, announce, info, will_kind, will, dead, size, ttl, number
        ) ORDER BY number
    LOOP
        IF change.enters THEN
            INSERT INTO chatserver.presence AS entry
                (channel, client, name, process, info, will_kind, will)
            VALUES (sha256(change.name), change.client, change.name, change.process, change.info,
                change.will_kind::"char", change.will)
            ON CONFLICT (channel, client) DO UPDATE SET process = excluded.process,
                info = excluded.info, will_kind = excluded.will_kind, will = excluded.will
            RETURNING xmax = 0 INTO is_new;
            IF is_new AND change.announce THEN
                events := events || ('["j",' || chatserver.quoted(change.name) || ','
                    || chatserver.quoted(change.info) || ']');
            END IF;
            CONTINUE;
        END IF;
        DELETE FROM chatserver.presence AS entry
        WHERE entry.channel = sha256(change.name) AND entry.client = change.client
            AND change.process IN ('', entry.process)
        RETURNING entry.info, entry.will_kind::text, entry.will INTO info, will_kind, will;
        CONTINUE WHEN NOT FOUND;
        IF change.announce THEN
            events := events || ('["l",' || chatserver.quoted(change.name) || ','
                || chatserver.quoted(info) || ']');
        END IF;
        IF change.dead AND will IS NOT NULL THEN
            last := last || change.number::integer;
            last_kinds := last_kinds || will_kind;
            last_wills := last_wills || will;
        END IF;
    END LOOP;
    IF events <> '{}' THEN
        PERFORM chatserver.announce('[' || array_to_string(events, ',') || ']');
    END IF;
    -- With the client as id, so that it comes once. No publisher's id begins so: it is UTF-8.
    PERFORM chatserver.append_each(
        array_agg(names[change] ORDER BY number), array_agg(sizes[change] ORDER BY number),
        array_agg(ttls[change] ORDER BY number),
        array_agg(decode('ff', 'hex') || clients[change] ORDER BY number), last_kinds, last_wills
    ) FROM unnest(last) WITH ORDINALITY AS given (change, number) HAVING count(*) > 0;
END
$$;

-- Who is in channels: the entries of processes that hold their lease.
CREATE OR REPLACE FUNCTION chatserver.present(names bytea[])
RETURNS TABLE (number bigint, info bytea) LANGUAGE sql STABLE AS $$
    SELECT given.number, presence.info
    FROM unnest(names) WITH ORDINALITY AS given (name, number)
    CROSS JOIN LATERAL (
        SELECT process, info FROM chatserver.presence WHERE channel = sha256(given.name) OFFSET 0
    ) AS presence
    CROSS JOIN LATERAL (
        SELECT taken, expires FROM chatserver.lease WHERE process = presence.process OFFSET 0
    ) AS lease
    WHERE NOT lease.taken AND lease.expires > clock_timestamp()
$$;

-- Some entries of a process.
CREATE OR REPLACE FUNCTION chatserver.entries(process text, most bigint)
RETURNS TABLE (channel bytea, client bytea, name bytea, info bytea) LANGUAGE sql STABLE AS $$
    SELECT entry.channel, entry.client, entry.name, entry.info FROM chatserver.presence AS entry
    WHERE entry.process = $1 LIMIT most
$$;

-- Remove an entry of which nothing can be announced.
CREATE OR REPLACE FUNCTION chatserver.forget(channel bytea, client bytea) RETURNS void
LANGUAGE sql AS $$
    DELETE FROM chatserver.presence AS entry WHERE entry.channel = $1 AND entry.client = $2
$$;

-- Hold a lease from now on; false if it was taken, or is unknown and not new.
CREATE OR REPLACE FUNCTION chatserver.renew(process text, ttl double precision, new boolean)
RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF new THEN
        INSERT INTO chatserver.lease AS held (process, expires)
        VALUES ($1, clock_timestamp() + make_interval(secs => ttl))
        ON CONFLICT ON CONSTRAINT lease_pkey
            DO UPDATE SET expires = excluded.expires, taken = false;
    ELSE
        UPDATE chatserver.lease AS held SET expires = clock_timestamp() + make_interval(secs => ttl)
        WHERE held.process = $1 AND NOT held.taken;
    END IF;
    RETURN FOUND;
END
$$;

-- Take the leases that have expired.
CREATE OR REPLACE FUNCTION chatserver.expired(ttl double precision) RETURNS SETOF text
LANGUAGE sql AS $$
    UPDATE chatserver.lease AS held
    SET taken = true, expires = clock_timestamp() + make_interval(secs => ttl)
    WHERE process IN (
        SELECT process FROM chatserver.lease WHERE expires <= clock_timestamp()
        ORDER BY process FOR UPDATE SKIP LOCKED
    ) RETURNING process
$$;

-- End a lease. With entries left it has expired, so that somebody removes them.
CREATE OR REPLACE FUNCTION chatserver.end_lease(process text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    -- Whoever enters a client holds this lock, too. So no entry appears after it was looked for.
    PERFORM FROM chatserver.lease AS held WHERE held.process = $1 FOR UPDATE;
    IF EXISTS (SELECT FROM chatserver.presence AS entry WHERE entry.process = $1) THEN
        UPDATE chatserver.lease AS held SET expires = clock_timestamp() WHERE held.process = $1;
    ELSE
        DELETE FROM chatserver.lease AS held WHERE held.process = $1;
    END IF;
END
$$;

-- Delete some of what is not needed any more, unless another process does so now. Returns whether
-- there may be more. Publications stay for a minute in any case, for whoever has only heard their
-- positions, or publishes one again; an idle stream stays for an hour, then a new one has another epoch.
CREATE OR REPLACE FUNCTION chatserver.tidy(most integer) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    now CONSTANT timestamptz := clock_timestamp();
    young CONSTANT interval := '1 minute';
    idle CONSTANT interval := '1 hour';
    stream record;
    oldest record;
    deleted integer;
    total integer := 0;
    channels CONSTANT integer := greatest(most / 10, 1);
    tidied bytea[] := '{}';
    tops bigint[] := '{}';
    dues timestamptz[] := '{}';
    locked bytea[];
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtext('chatserver'), 2) THEN
        RETURN false;
    END IF;
    DELETE FROM chatserver.publication_id WHERE expires <= now AND ctid = ANY (ARRAY(
        SELECT ctid FROM chatserver.publication_id WHERE expires <= now
        ORDER BY expires LIMIT most FOR UPDATE SKIP LOCKED
    ));
    GET DIAGNOSTICS deleted = ROW_COUNT;
    total := deleted;
    FOR stream IN
        SELECT key, id, top, size, ttl, used FROM chatserver.channel
        WHERE due <= now ORDER BY due LIMIT channels
    LOOP
        EXIT WHEN total >= most;
        DELETE FROM chatserver.publication WHERE channel = stream.id AND position <= (
            SELECT max(position) FROM (
                SELECT position, time FROM chatserver.publication
                WHERE channel = stream.id ORDER BY position LIMIT most
            ) AS bottom
            WHERE time <= now - young AND (
                position <= stream.top - stream.size
                OR time <= now - make_interval(secs => stream.ttl)
            )
        );
        GET DIAGNOSTICS deleted = ROW_COUNT;
        total := total + deleted;
        SELECT position, time INTO oldest FROM chatserver.publication
        WHERE channel = stream.id ORDER BY position LIMIT 1;
        tidied := tidied || stream.key;
        tops := tops || stream.top;
        dues := dues || CASE
            WHEN deleted >= most THEN now
            WHEN oldest IS NULL THEN stream.used + idle
            WHEN oldest.position <= stream.top - stream.size THEN now + young
            ELSE greatest(now + young, oldest.time + make_interval(secs => stream.ttl))
        END;
    END LOOP;
    -- Locked at the end, and only for a moment.
    locked := ARRAY(
        SELECT key FROM chatserver.channel WHERE key = ANY (tidied)
        ORDER BY key FOR UPDATE SKIP LOCKED
    );
    UPDATE chatserver.channel
    SET due = CASE WHEN top = tops[array_position(tidied, key)]
        THEN dues[array_position(tidied, key)] ELSE now + young END
    WHERE key = ANY (locked);
    DELETE FROM chatserver.channel WHERE key = ANY (tidied) AND used <= now - idle
        AND NOT EXISTS (
            SELECT FROM chatserver.publication WHERE publication.channel = channel.id
        );
    RETURN total >= most OR cardinality(tidied) >= channels;
END
$$;

-- The version of this schema; an older one is brought up to date.
CREATE OR REPLACE FUNCTION chatserver.version() RETURNS integer LANGUAGE sql IMMUTABLE AS $$
    SELECT 2
$$;
