// <mf-paint>: draws a mask on a picture. `picture(address)` shows one; `mask()` gives a PNG as a data address, white where
// something was painted, at the picture's own size, or "" when nothing was.
(() => {
  class Paint extends HTMLElement {
    connectedCallback() {
      if (this.ready) return;
      this.ready = true;
      this.marks = [];
      this.innerHTML = `
        <canvas tabindex="0" width="16" height="9" role="img"
          aria-label="Paint over what is to be made anew. Arrow keys move the brush, Space paints."></canvas>
        <div class="mf-tools">
          <label>Brush <input type="range" min="1" max="60" value="12" aria-label="Width of the brush"></label>
          <button type="button" data-do="erase" aria-pressed="false">Erase</button>
          <button type="button" data-do="undo">Undo</button>
          <button type="button" data-do="clear">Clear</button>
          <output aria-live="polite">Choose a picture, then paint over what is to be made anew.</output>
        </div>`;
      this.canvas = this.querySelector("canvas");
      this.brush = this.querySelector("input");
      this.output = this.querySelector("output");
      this.listen();
    }

    picture(address) {
      this.marks = [];
      this.image = null;
      this.draw();
      if (!address) return;
      const image = new Image();
      image.onload = () => {
        this.image = image;
        this.canvas.width = image.naturalWidth;
        this.canvas.height = image.naturalHeight;
        this.at = [image.naturalWidth / 2, image.naturalHeight / 2];
        this.dataset.state = "ready";
        this.draw();
      };
      image.onerror = () => { this.output.textContent = "This browser cannot show that picture; use a mask file."; };
      image.src = address;
    }

    radius() {
      return (this.brush.value / 200) * Math.min(this.canvas.width, this.canvas.height);
    }

    listen() {
      const erase = this.querySelector("[data-do=erase]");
      const where = (event) => {
        const box = this.canvas.getBoundingClientRect();
        return [((event.clientX - box.left) / box.width) * this.canvas.width, ((event.clientY - box.top) / box.height) * this.canvas.height];
      };
      const begin = () => this.marks.push({ erase: erase.getAttribute("aria-pressed") === "true", radius: this.radius(), points: [] });
      let drawing = false;
      this.canvas.addEventListener("pointerdown", (event) => {
        if (!this.image) return;
        drawing = true;
        this.canvas.setPointerCapture(event.pointerId);
        begin();
        this.add(where(event));
      });
      this.canvas.addEventListener("pointermove", (event) => drawing && this.add(where(event)));
      for (const name of ["pointerup", "pointercancel"]) this.canvas.addEventListener(name, () => { drawing = false; });
      this.canvas.addEventListener("keydown", (event) => {
        if (!this.image) return;
        const step = Math.max(1, this.radius() / 2);
        const move = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
        if (!move && event.key !== " ") return;
        event.preventDefault();
        if (move) {
          this.at = [
            Math.min(this.canvas.width, Math.max(0, this.at[0] + move[0])),
            Math.min(this.canvas.height, Math.max(0, this.at[1] + move[1])),
          ];
          this.byKey = true;
          this.draw();
        } else {
          begin();
          this.add(this.at);
        }
      });
      this.addEventListener("click", (event) => {
        const act = event.target.dataset?.do;
        if (act === "erase") erase.setAttribute("aria-pressed", String(erase.getAttribute("aria-pressed") !== "true"));
        if (act === "undo") this.marks.pop();
        if (act === "clear") this.marks = [];
        if (act) this.draw();
      });
    }

    add(point) {
      this.at = point;
      this.marks[this.marks.length - 1].points.push(point);
      this.draw();
    }

    layer() {
      const layer = new OffscreenCanvas(this.canvas.width, this.canvas.height), context = layer.getContext("2d");
      context.lineCap = context.lineJoin = "round";
      context.strokeStyle = context.fillStyle = "#fff";
      for (const { erase, radius, points } of this.marks) {
        context.globalCompositeOperation = erase ? "destination-out" : "source-over";
        context.lineWidth = 2 * radius;
        context.beginPath();
        context.arc(points[0][0], points[0][1], radius, 0, 2 * Math.PI);
        context.fill();
        context.beginPath();
        for (const [x, y] of points) context.lineTo(x, y);
        context.stroke();
      }
      return layer;
    }

    draw() {
      const context = this.canvas.getContext("2d"), { width, height } = this.canvas;
      context.clearRect(0, 0, width, height);
      if (!this.image) return;
      context.drawImage(this.image, 0, 0, width, height);
      const tint = this.layer(), over = tint.getContext("2d");
      over.globalCompositeOperation = "source-in";
      over.fillStyle = "#e0218a";
      over.fillRect(0, 0, width, height);
      context.globalAlpha = 0.6;
      context.drawImage(tint, 0, 0);
      context.globalAlpha = 1;
      if (this.byKey) {
        context.strokeStyle = "#fff";
        context.lineWidth = Math.max(1, width / 300);
        context.beginPath();
        context.arc(this.at[0], this.at[1], this.radius(), 0, 2 * Math.PI);
        context.stroke();
      }
      const painted = this.marks.some((mark) => !mark.erase);
      this.output.textContent = painted ? "The pink part is made anew." : "Paint over what is to be made anew.";
    }

    mask() {
      if (!this.image || !this.marks.some((mark) => !mark.erase)) return "";
      const { width, height } = this.canvas, canvas = document.createElement("canvas");
      canvas.width = width;
      canvas.height = height;
      const context = canvas.getContext("2d");
      context.fillStyle = "#000";
      context.fillRect(0, 0, width, height);
      context.drawImage(this.layer(), 0, 0);
      return canvas.toDataURL("image/png");
    }
  }

  if (!customElements.get("mf-paint")) customElements.define("mf-paint", Paint);
})();
