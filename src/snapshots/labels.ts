// The labels by which containerd says what a snapshot is for. What does not live here: what is done
// about it.
//
// `containerd.io/snapshot.ref` comes with every layer that is unpacked while it is pulled (the kubelet's
// and crictl's CRI, nerdctl, BuildKit, containerd 2.x' transfer service): the name that the committed
// layer will have, which is its chain id. The cri.* labels come too where annotations are switched on
// (docs/CONTAINERD.md): they name the image.
import { FirstlightError } from '../errors/errors.ts';
import { isDigest } from '../store/layout.ts';
import type { Labels } from './types.ts';

export const REF_LABEL = 'containerd.io/snapshot.ref';
const IMAGE_REF = 'containerd.io/snapshot/cri.image-ref';
const MANIFEST_DIGEST = 'containerd.io/snapshot/cri.manifest-digest';
const LAYER_DIGEST = 'containerd.io/snapshot/cri.layer-digest';
const IMAGE_LAYERS = 'containerd.io/snapshot/cri.image-layers';
/** User-namespace mappings that the files are to be shifted by. */
const ID_MAPPINGS = ['containerd.io/snapshot/uidmapping', 'containerd.io/snapshot/gidmapping'];
/** containerd refuses a label whose name and value are together longer (its labels package). */
const LABEL_MAX = 4096;
/** The longest digest (sha512) and the comma before it. */
const LIST_ITEM_MAX = 136;

/** What a pull says about the layer that it is about to unpack. */
export interface LayerLabels {
  /** Chain id of the layer and those below it: the name of the committed snapshot. */
  chainId: string;
  /** The image as the client calls it. */
  ref: string | null;
  /** Digest of the image's manifest. */
  manifest: string | null;
  /** Digest of the layer's blob. */
  layerDigest: string | null;
  /** Digests of the blobs from this layer upwards; none where the pull does not say them. */
  upwards: string[];
  /** True where `upwards` goes to the last layer: CRI leaves out what would not fit into a label. */
  isWhole: boolean;
}

/** The labels of a layer being pulled; undefined for any other snapshot. */
export function layerLabels(labels: Labels): LayerLabels | undefined {
  const chainId = labels[REF_LABEL];
  if (chainId === undefined || chainId === '') return undefined;
  const manifest = labels[MANIFEST_DIGEST];
  const upwards = labels[IMAGE_LAYERS] ?? '';
  return {
    chainId,
    ref: labels[IMAGE_REF] || null,
    manifest: manifest !== undefined && isDigest(manifest) ? manifest : null,
    layerDigest: labels[LAYER_DIGEST] || null,
    upwards: upwards === '' ? [] : upwards.split(','),
    // One more would have fitted, so there is none.
    isWhole: upwards !== '' && IMAGE_LAYERS.length + upwards.length + LIST_ITEM_MAX <= LABEL_MAX,
  };
}

/**
 * Refuses what cannot be done.
 * @throws FirstlightError `unsupported` for mappings of a user namespace, `usage` for a label that is too long
 */
export function checkLabels(labels: Labels): void {
  for (const name of ID_MAPPINGS) {
    if (labels[name] === undefined) continue;
    throw new FirstlightError(
      'unsupported',
      `label ${name}: this snapshotter does not shift the owners of files`,
      {
        hint: 'do without the user namespace, or let containerd copy the files: leave remap-ids out of capabilities',
      },
    );
  }
  for (const [name, value] of Object.entries(labels)) {
    if (name.length + value.length <= LABEL_MAX) continue;
    throw new FirstlightError(
      'usage',
      `label ${name.slice(0, 80)} is longer than ${LABEL_MAX} bytes`,
    );
  }
}

/** Namespace in a key that containerd's metadata store has made (`k8s.io/12/sha256:...`); empty where none is. */
export function namespaceOf(key: string): string {
  return /^([A-Za-z0-9][A-Za-z0-9._-]*)\/\d+\//.exec(key)?.[1] ?? '';
}
