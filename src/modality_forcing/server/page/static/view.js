// <mf-view>: one result. Picture and depth under a divider, the depth under the cursor, colours, and the scene in 3D.
// Its data attributes: rgb (address of a picture), depth (base64 of deflated little-endian uint16, see result.py) and
// meta (JSON: width, height, near, far, unit, camera, edge_rtol). Everything is drawn here; nothing is asked of anybody.
(() => {
  const html = (strings, ...values) => String.raw({ raw: strings }, ...values);
  const number = (value) => (value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(3));

  async function inflate(text) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint16Array(await new Response(stream).arrayBuffer());
  }

  class View extends HTMLElement {
    async connectedCallback() {
      if (this.ready) return;
      this.ready = true;
      this.meta = JSON.parse(this.dataset.meta);
      // Small results are drawn larger, so that divider and crosshair stay thin.
      this.scale = Math.max(1, Math.round(768 / Math.max(this.meta.width, this.meta.height)));
      this.innerHTML = this.skeleton();
      for (const name of ["flat", "solid", "canvas", "divider", "readout", "map", "near", "far", "auto", "scene", "shape", "hint"])
        this[name] = this.querySelector(`[data-part=${name}]`);
      try {
        await this.load();
      } catch (error) {
        this.readout.textContent = "This browser cannot show the result; the files below are complete.";
        return;
      }
      this.listen();
      this.autoRange();
      this.dataset.state = "ready";
      // A link to a result leads to the result, not to the form above it.
      if (new URLSearchParams(location.search).has("job")) this.scrollIntoView({ block: "nearest" });
    }

    disconnectedCallback() {
      this.cloud?.close();
      this.cloud = null;
    }

    skeleton() {
      const { width, height } = this.meta;
      const maps = Object.keys(window.mfColorMaps).map((name) => html`<option>${name}</option>`).join("");
      return html`
        <div class="mf-modes" role="group" aria-label="What to show">
          <button type="button" data-mode="flat" aria-pressed="true">Picture and depth</button>
          <button type="button" data-mode="solid" aria-pressed="false">3D</button>
        </div>
        <div data-part="flat">
          <canvas data-part="canvas" width="${width * this.scale}" height="${height * this.scale}" tabindex="0" role="img"
            aria-label="Picture left of the divider, depth right of it. Arrow keys move the point that is read."></canvas>
          <label class="mf-divider">Picture <input data-part="divider" type="range" min="0" max="100" value="50"
            aria-label="Divider between picture and depth"> Depth</label>
          <output data-part="readout" aria-live="polite">Point at the picture to read its depth.</output>
          <div class="mf-tools">
            <label>Colours <select data-part="map">${maps}</select></label>
            <label>Near <input data-part="near" type="number" min="0" step="any" inputmode="decimal"></label>
            <label>Far <input data-part="far" type="number" min="0" step="any" inputmode="decimal"></label>
            <button type="button" data-part="auto">Whole range</button>
            <button type="button" data-save="depth">Save these colours</button>
          </div>
        </div>
        <div data-part="solid" hidden>
          <canvas data-part="scene" tabindex="0" role="img"
            aria-label="The scene in 3D. Arrow keys turn it, plus and minus zoom, Home goes back to the camera."></canvas>
          <div class="mf-tools">
            <label>Show as <select data-part="shape"><option value="points">points</option><option value="mesh">surface</option></select></label>
            <button type="button" data-home>Back to the camera</button>
            <span data-part="hint">Drag to turn, wheel or pinch to zoom, two fingers or Shift to move.</span>
          </div>
        </div>`;
    }

    async load() {
      const { width, height, near, far } = this.meta;
      const [codes, picture] = await Promise.all([inflate(this.dataset.depth), this.picture()]);
      if (codes.length !== width * height) throw new Error("depth and picture differ in size");
      const ratio = Math.log(far / near);
      this.depth = Float32Array.from(codes, (code) => (code === 0 ? 0 : near * Math.exp(((code - 1) / 65534) * ratio)));
      this.pixels = picture;
      this.removeAttribute("data-depth");
      this.removeAttribute("data-rgb");
    }

    async picture() {
      const { width, height } = this.meta;
      const image = new Image();
      image.src = this.dataset.rgb;
      await image.decode();
      const canvas = new OffscreenCanvas(width, height);
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(image, 0, 0, width, height);
      return context.getImageData(0, 0, width, height);
    }

    listen() {
      for (const button of this.querySelectorAll("[data-mode]"))
        button.addEventListener("click", () => this.show(button.dataset.mode));
      this.divider.addEventListener("input", () => this.draw());
      for (const input of [this.map, this.near, this.far]) input.addEventListener("change", () => this.colour());
      this.auto.addEventListener("click", () => this.autoRange());
      this.canvas.addEventListener("pointermove", (event) => this.follow(event));
      this.canvas.addEventListener("pointerdown", (event) => this.follow(event));
      this.canvas.addEventListener("keydown", (event) => this.walk(event));
      this.querySelector("[data-save]").addEventListener("click", () => this.save());
      this.shape.addEventListener("change", () => this.cloud?.shape(this.shape.value));
      this.querySelector("[data-home]").addEventListener("click", () => this.cloud?.home());
    }

    show(mode) {
      for (const button of this.querySelectorAll("[data-mode]"))
        button.setAttribute("aria-pressed", String(button.dataset.mode === mode));
      this.flat.hidden = mode !== "flat";
      this.solid.hidden = mode !== "solid";
      if (mode === "solid" && !this.cloud) {
        try {
          this.cloud = new window.MfCloud(this.scene, this.depth, this.pixels.data, this.meta);
        } catch (error) {
          this.hint.textContent = `${error.message} The cloud is among the files below.`;
        }
      }
    }

    autoRange() {
      // As the saved picture: the 2nd to the 98th percentile of 1 / depth.
      const values = Float64Array.from(this.depth.filter((d) => d > 0), (d) => 1 / d).sort();
      if (values.length === 0) return this.colour();
      const at = (q) => {
        const place = (values.length - 1) * q, low = Math.floor(place), high = Math.min(low + 1, values.length - 1);
        return values[low] + (values[high] - values[low]) * (place - low);
      };
      this.near.value = String(Number((1 / at(0.98)).toPrecision(6)));
      this.far.value = String(Number((1 / at(0.02)).toPrecision(6)));
      this.colour();
    }

    colour() {
      const { width, height } = this.meta;
      const table = window.mfColorMaps[this.map.value];
      const near = Number(this.near.value), far = Number(this.far.value);
      const wrong = !(near > 0 && far >= near);
      this.near.setAttribute("aria-invalid", String(wrong));
      this.far.setAttribute("aria-invalid", String(wrong));
      if (wrong && this.shown) return;
      const low = 1 / far, high = 1 / near;
      const image = new ImageData(width, height);
      for (let i = 0; i < this.depth.length; i++) {
        const d = this.depth[i];
        let colour = [128, 128, 128];
        if (d > 0) {
          const level = high - low > 1e-6 * high ? Math.min(1, Math.max(0, (1 / d - low) / (high - low))) : 0.5;
          colour = table[Math.round(level * 255)];
        }
        image.data.set([colour[0], colour[1], colour[2], 255], 4 * i);
      }
      this.shown = image;
      this.draw();
    }

    draw() {
      const { width, height } = this.canvas, scale = this.scale;
      const context = this.canvas.getContext("2d");
      const split = Math.round((this.meta.width * (100 - this.divider.value)) / 100);
      context.imageSmoothingQuality = "high";
      context.drawImage(this.sheet(this.pixels), 0, 0, width, height);
      context.save();
      context.beginPath();
      context.rect(split * scale, 0, width, height);
      context.clip();
      context.drawImage(this.sheet(this.shown), 0, 0, width, height);
      context.restore();
      const thick = Math.max(2, width / 400);
      if (split > 0 && split < this.meta.width) {
        context.fillStyle = "#fff";
        context.fillRect(split * scale - thick / 2, 0, thick, height);
      }
      if (!this.point) return;
      const x = (this.point[0] + 0.5) * scale, y = (this.point[1] + 0.5) * scale, arm = width / 40;
      for (const [style, line] of [["#000", 2.5 * thick], ["#fff", thick]]) {
        context.strokeStyle = style;
        context.lineWidth = line;
        context.beginPath();
        context.moveTo(x - arm, y);
        context.lineTo(x + arm, y);
        context.moveTo(x, y - arm);
        context.lineTo(x, y + arm);
        context.stroke();
      }
    }

    sheet(data) {
      if (this.sheets?.get(data)) return this.sheets.get(data);
      const canvas = new OffscreenCanvas(data.width, data.height);
      canvas.getContext("2d").putImageData(data, 0, 0);
      this.sheets ??= new WeakMap();
      this.sheets.set(data, canvas);
      return canvas;
    }

    follow(event) {
      const box = this.canvas.getBoundingClientRect();
      this.read(((event.clientX - box.left) / box.width) * this.meta.width, ((event.clientY - box.top) / box.height) * this.meta.height);
    }

    walk(event) {
      const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (!move) return;
      event.preventDefault();
      const step = event.shiftKey ? 10 : 1;
      const [x, y] = this.point ?? [this.meta.width / 2, this.meta.height / 2];
      this.read(x + move[0] * step, y + move[1] * step);
    }

    read(x, y) {
      const { width, height, unit } = this.meta;
      x = Math.min(width - 1, Math.max(0, Math.floor(x)));
      y = Math.min(height - 1, Math.max(0, Math.floor(y)));
      this.point = [x, y];
      const d = this.depth[y * width + x];
      const what = d > 0 ? `depth ${number(d)} ${unit === "m" ? "m" : "(relative, no unit)"}` : "no depth (sky or unknown)";
      this.readout.textContent = `column ${x}, row ${y}: ${what}`;
      this.draw();
    }

    async save() {
      const canvas = new OffscreenCanvas(this.meta.width, this.meta.height);
      canvas.getContext("2d").putImageData(this.shown, 0, 0);
      const link = document.createElement("a");
      link.href = URL.createObjectURL(await canvas.convertToBlob());
      link.download = `depth_${this.map.value}.png`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    }
  }

  if (!customElements.get("mf-view")) customElements.define("mf-view", View);
})();
