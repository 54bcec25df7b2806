/** What an AsyncAPI document says of an application's endpoints, as the page needs it. */

const DEEPEST = 20; // references that lead to references

export class Description {
  constructor(document) {
    this.document = document;
    this.title = document.info?.title ?? "";
    this.version = document.info?.version ?? "";
    this.closeCodes = new Map((document["x-close-codes"] ?? []).map((row) => [row.code, row]));
    this.endpoints = Object.entries(document.channels ?? {}).map(([key, channel]) =>
      this.#endpoint(key, this.resolve(channel)),
    );
  }

  /** An object of the document, with its references followed and `allOf` put together. */
  resolve(value, depth = 0) {
    if (value === null || typeof value !== "object" || depth > DEEPEST) return {};
    const { $ref, allOf, ...rest } = value;
    const parts = (allOf ?? []).map((part) => this.resolve(part, depth + 1));
    if (typeof $ref === "string") parts.push(this.resolve(this.#at($ref), depth + 1));
    return [...parts, rest].reduce(merged, {});
  }

  #at(reference) {
    const names = reference.replace(/^#\//, "").split("/");
    const unescaped = names.map((name) => name.replaceAll("~1", "/").replaceAll("~0", "~"));
    return unescaped.reduce((found, name) => found?.[name], this.document);
  }

  #endpoint(key, channel) {
    const here = ({ channel: { $ref } = {} }) => $ref === `#/channels/${key}`;
    const operations = Object.values(this.document.operations ?? {}).filter(here);
    const of = (action) => operations.filter((operation) => operation.action === action);
    const messages = (all) => this.#messages(all.flatMap((each) => each?.messages ?? []));
    const answers = operations.map((operation) => operation.reply);
    const security = operations.flatMap((operation) => operation.security ?? []);
    return {
      key,
      title: channel.title ?? key,
      address: channel.address ?? "/",
      description: [channel.summary, channel.description].filter(Boolean).join("\n\n"),
      parameters: this.#parameters(channel),
      subprotocols: channel["x-subprotocols"] ?? [],
      recovers: channel["x-recover"] === true,
      takesToken: security.length > 0,
      takes: messages(of("receive")),
      sends: messages([...of("send"), ...answers]),
    };
  }

  /** Messages, each once. */
  #messages(references) {
    const found = new Map();
    for (const reference of references) {
      const message = this.resolve(reference);
      const payload = this.resolve(message.payload?.schema ?? message.payload);
      const title = message.title ?? message.name ?? "Message";
      const description = [message.summary, message.description].filter(Boolean).join("\n\n");
      found.set(reference.$ref ?? title, {
        title,
        description,
        payload,
        contentType: message.contentType ?? "application/json",
        example: message.examples?.[0]?.payload,
      });
    }
    return [...found.values()];
  }

  #parameters({ address = "", parameters = {}, bindings = {} }) {
    const { query, headers } = bindings.ws ?? {};
    const inPath = Object.entries(parameters)
      .filter(([name]) => address.includes(`{${name}}`))
      .map(([name, { "x-schema": schema = { type: "string" }, ...rest }]) => {
        const { description, enum: choices, examples } = this.resolve(rest);
        const known = { ...schema, ...(choices && { enum: choices }), ...(examples && { examples }) };
        return { name, in: "path", required: true, schema: { ...known, description } };
      });
    const { Cookie, ...properties } = headers?.properties ?? {};
    return [
      ...inPath,
      ...this.#values("query", query),
      ...this.#values("header", { ...headers, properties }),
      ...this.#values("cookie", Cookie?.["x-cookies"]),
    ];
  }

  #values(where, { properties = {}, required = [] } = {}) {
    return Object.entries(properties).map(([name, schema]) => {
      return { name, in: where, required: required.includes(name), schema: this.resolve(schema) };
    });
  }

  /** A value that fits a schema, more or less: to begin with in an editor. */
  example(schema, depth = 0) {
    const found = this.resolve(schema);
    for (const value of [found.const, found.examples?.[0], found.default, found.enum?.[0]]) {
      if (value !== undefined) return value;
    }
    const variants = found.anyOf ?? found.oneOf;
    if (variants && depth < DEEPEST) return this.example(variants[0], depth + 1);
    if (found.properties && depth < 5) {
      const names = Object.keys(found.properties);
      const needed = names.filter((name) => isNeeded(found, name, this));
      return Object.fromEntries(
        needed.map((name) => [name, this.example(found.properties[name], depth + 1)]),
      );
    }
    const type = [found.type].flat()[0];
    return { string: "", integer: found.minimum ?? 0, number: 0, boolean: false, array: [], object: {} }[type] ?? null;
  }
}

/** Whether a message can't be without a property; a constant, such as its type, always belongs to it. */
export function isNeeded(schema, name, description) {
  if (schema.required?.includes(name)) return true;
  return description.resolve(schema.properties[name]).const !== undefined;
}

function merged(one, other) {
  const both = { ...one, ...other };
  if (one.properties && other.properties) {
    both.properties = { ...one.properties };
    for (const [name, schema] of Object.entries(other.properties)) {
      both.properties[name] = { ...one.properties[name], ...schema };
    }
  }
  if (one.required && other.required) both.required = [...new Set([...one.required, ...other.required])];
  return both;
}
