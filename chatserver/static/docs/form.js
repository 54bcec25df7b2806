/**
 * A form made from a JSON Schema. Each field reads its value, or throws a `Problem` that names the
 * control; what is left empty and may be left out is `undefined`. What has no form is JSON.
 */

import { element } from "../element.js";
import { isNeeded } from "./description.js";

const DEEPEST = 6; // levels; what is deeper is written as JSON
let count = 0; // of ids

export class Problem extends Error {
  constructor(control, sentence) {
    super(sentence);
    this.control = control;
  }
}

/**
 * A field for a value.
 *
 * @param {Description} description resolves references
 * @param {object} given its schema
 * @param {{name: string, required: boolean, depth?: number}} options
 * @returns {{node: HTMLElement, read: () => any}}
 */
export function field(description, given, { name, required, depth = 0 }) {
  const schema = withoutNull(description, description.resolve(given));
  const options = { name, required, depth, description };
  if (schema.const !== undefined) return { node: document.createDocumentFragment(), read: () => schema.const };
  if (schema.enum) return choice(schema, options);
  if (depth < DEEPEST) {
    if (schema.variants) return variants(schema, options);
    if (schema.type === "object" && schema.properties) return object(schema, options);
    if (schema.type === "array" && schema.items && !Array.isArray(schema.items)) return list(schema, options);
  }
  if (schema.type === "boolean") return choice({ ...schema, enum: [false, true] }, options);
  if (schema.type === "integer" || schema.type === "number") return number(schema, options);
  if (schema.type === "string") return text(schema, options);
  return json(schema, options);
}

/** The schema of a value that is there; `nullable` says whether it may be null instead. */
function withoutNull(description, schema) {
  const all = schema.anyOf ?? schema.oneOf;
  const isNull = (each) => description.resolve(each).type === "null";
  if (all) {
    const others = all.filter((each) => !isNull(each));
    const nullable = others.length < all.length;
    if (others.length > 1) return { ...schema, nullable, variants: others };
    return { ...schema, ...description.resolve(others[0]), nullable };
  }
  if (!Array.isArray(schema.type)) return schema;
  const types = schema.type.filter((each) => each !== "null");
  const nullable = types.length < schema.type.length;
  if (types.length === 1) return { ...schema, type: types[0], nullable };
  return { ...schema, nullable, variants: types.map((type) => ({ ...schema, type })) };
}

/** A control with its label and what is to be known about it. */
function labelled(control, schema, { name, required }, kind) {
  const node = element("div", "field");
  const label = element("label", "", name);
  control.id = label.htmlFor = `field-${(count += 1)}`;
  const facts = [required ? "" : "optional", kind, ...bounds(schema)].filter(Boolean).join(", ");
  if (facts) label.append(" ", element("small", "", facts));
  node.append(label, control);
  if (schema.description) {
    const help = element("p", "hint", schema.description);
    help.id = `${control.id}-help`;
    control.setAttribute("aria-describedby", help.id);
    node.append(help);
  }
  return node;
}

function bounds({ minimum, maximum, exclusiveMinimum, exclusiveMaximum, minLength, maxLength, default: preset }) {
  const least = minimum ?? exclusiveMinimum;
  const most = maximum ?? exclusiveMaximum;
  return [
    least !== undefined && `${minimum === undefined ? "more than" : "from"} ${least}`,
    most !== undefined && `${maximum === undefined ? "less than" : "to"} ${most}`,
    minLength > 0 && `at least ${minLength} characters`,
    maxLength !== undefined && `at most ${maxLength} characters`,
    preset !== undefined && preset !== null && `by default ${JSON.stringify(preset)}`,
  ];
}

/** What an empty control stands for. */
function nothing(control, schema, { name, required }) {
  if (!required) return undefined;
  if (schema.nullable) return null;
  throw new Problem(control, `${name} is needed.`);
}

function input(schema) {
  const control = element("input");
  Object.assign(control, { autocapitalize: "none", spellcheck: false, autocomplete: "off" });
  if (schema.examples) control.placeholder = String(schema.examples[0]);
  return control;
}

function text(schema, options) {
  const control = schema.maxLength > 200 ? element("textarea") : input(schema);
  const read = () => {
    const { value } = control;
    const isShort = value.length < (schema.minLength ?? 0);
    if (value === "" && (isShort || schema.nullable || !options.required)) return nothing(control, schema, options);
    if (isShort) throw new Problem(control, `${options.name} has at least ${schema.minLength} characters.`);
    if ([...value].length > schema.maxLength) throw new Problem(control, `${options.name} has at most ${schema.maxLength} characters.`);
    return value.toWellFormed();
  };
  const format = schema.contentEncoding ?? schema.format ?? "";
  return { node: labelled(control, schema, options, format), read };
}

function number(schema, options) {
  const control = input(schema);
  const isWhole = schema.type === "integer";
  control.inputMode = isWhole ? "numeric" : "decimal";
  const read = () => {
    const value = control.value.trim();
    if (value === "") return nothing(control, schema, options);
    const made = Number(value);
    if (!(isWhole ? /^[+-]?\d+$/.test(value) : Number.isFinite(made))) {
      throw new Problem(control, `${options.name} is ${isWhole ? "a whole number" : "a number"}.`);
    }
    if (isWhole && !Number.isSafeInteger(made)) {
      throw new Problem(control, `${options.name} is too large for this form: write it in a raw frame.`);
    }
    return made;
  };
  return { node: labelled(control, schema, options, schema.type), read };
}

function choice(schema, options) {
  const control = element("select");
  const first = options.required && !schema.nullable ? [] : [undefined];
  const values = [...first, ...schema.enum];
  for (const value of values) control.append(element("option", "", value === undefined ? "–" : String(value)));
  const read = () => {
    const value = values[control.selectedIndex];
    return value === undefined ? nothing(control, schema, options) : value;
  };
  return { node: labelled(control, schema, options, ""), read };
}

function json(schema, options) {
  const control = element("textarea");
  control.spellcheck = false;
  if (options.required) control.value = JSON.stringify(options.description.example(schema), null, 2);
  const read = () => {
    if (control.value.trim() === "") return nothing(control, schema, options);
    try {
      return JSON.parse(control.value);
    } catch (error) {
      throw new Problem(control, `${options.name} is no JSON: ${error.message}`);
    }
  };
  return { node: labelled(control, schema, options, "JSON"), read };
}

function group(name, schema, required) {
  const node = element("fieldset", "group");
  node.append(element("legend", "", required ? name : `${name} (optional)`));
  if (schema.description) node.append(element("p", "hint", schema.description));
  return node;
}

function object(schema, { name, required, depth, description }) {
  const node = depth === 0 ? element("div", "group") : group(name, schema, required);
  let fields = null;
  const build = () => {
    fields = Object.entries(schema.properties).map(([key, inner]) => {
      const needed = isNeeded(schema, key, description);
      return [key, field(description, inner, { name: key, required: needed, depth: depth + 1 })];
    });
    for (const [, each] of fields) node.append(each.node);
  };
  const read = () => {
    const values = fields.map(([key, each]) => [key, each.read()]);
    return Object.fromEntries(values.filter(([, value]) => value !== undefined));
  };
  if (required) {
    build();
    return { node, read };
  }
  // Made when it is wanted: a schema may contain itself.
  const wanted = button(`Add ${name}`, () => {
    wanted.remove();
    build();
    node.querySelector("input, select, textarea")?.focus();
  });
  node.append(wanted);
  return { node, read: () => (fields ? read() : undefined) };
}

function list(schema, { name, required, depth, description }) {
  const node = group(name, schema, required);
  const items = new Set();
  const add = button(`Add to ${name}`, () => {
    const item = field(description, schema.items, { name: `${name} ${items.size + 1}`, required: true, depth: depth + 1 });
    const row = element("div", "row");
    const remove = button("Remove", () => {
      items.delete(item);
      row.remove();
      add.focus();
    });
    row.append(item.node, remove);
    items.add(item);
    add.before(row);
    row.querySelector("input, select, textarea, button").focus();
  });
  node.append(add);
  const read = () => (items.size === 0 && !required ? undefined : [...items].map((item) => item.read()));
  return { node, read };
}

function variants(schema, { name, required, depth, description }) {
  const node = group(name, schema, required);
  const all = schema.variants.map((each) => description.resolve(each));
  const control = element("select");
  control.setAttribute("aria-label", `Kind of ${name}`);
  if (!required || schema.nullable) control.append(element("option", "", "–"));
  const empty = control.length;
  all.forEach((each, at) => control.append(element("option", "", each.title ?? each.type ?? `kind ${at + 1}`)));
  const place = element("div");
  let inner = null;
  const choose = () => {
    const chosen = all[control.selectedIndex - empty];
    inner = chosen ? field(description, chosen, { name, required: true, depth: depth + 1 }) : null;
    place.replaceChildren(...(inner ? [inner.node] : []));
  };
  control.addEventListener("change", choose);
  node.append(control, place);
  choose();
  const read = () => (inner ? inner.read() : required ? null : undefined);
  return { node, read };
}

function button(label, onClick) {
  const made = element("button", "quiet", label);
  made.type = "button";
  made.addEventListener("click", onClick);
  return made;
}
