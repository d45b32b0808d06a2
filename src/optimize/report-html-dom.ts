// The little of the browser's interface that the report's page uses, as types, and the functions
// that make elements. Functions here and in the other report-html-*.ts files marked "in the page" run
// in the browser: report-html.ts writes their source into the page, so they may call each other but
// may not use anything else of their modules.

/** An element, HTML or SVG. */
export interface PageElement {
  textContent: string | null;
  className: string;
  hidden: boolean;
  value: string;
  scrollTop: number;
  readonly clientWidth: number;
  readonly clientHeight: number;
  readonly style: { setProperty(name: string, value: string): void };
  append(...children: (PageElement | string)[]): void;
  replaceChildren(...children: (PageElement | string)[]): void;
  setAttribute(name: string, value: string): void;
  removeAttribute(name: string): void;
  addEventListener(type: string, listener: (event: PagePointer) => void): void;
  getBoundingClientRect(): { left: number; top: number; width: number; height: number };
  setPointerCapture(id: number): void;
}

/** A pointer or key event. */
export interface PagePointer {
  readonly clientX: number;
  readonly clientY: number;
  readonly pointerId: number;
  readonly button: number;
  readonly key: string;
  preventDefault(): void;
}

/** The page. */
export interface PageDocument {
  readonly documentElement: PageElement;
  getElementById(id: string): PageElement | null;
  createElement(name: string): PageElement;
  createElementNS(space: string, name: string): PageElement;
}

declare const document: PageDocument;

/** In the page: the element with an id, which the page has. */
export function byId(id: string): PageElement {
  const element = document.getElementById(id);
  if (element === null) throw new Error(`the page has no #${id}`);
  return element;
}

/** In the page: an HTML element. Text goes in as text, so names of files cannot be markup. */
export function html(
  name: string,
  attributes: Record<string, string>,
  ...children: (PageElement | string)[]
): PageElement {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** In the page: an SVG element. */
export function svg(
  name: string,
  attributes: Record<string, string | number>,
  ...children: (PageElement | string)[]
): PageElement {
  const element = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, String(value));
  element.append(...children);
  return element;
}

/** What of this file goes into the page. */
export const DOM_FUNCTIONS = [byId, html, svg];
